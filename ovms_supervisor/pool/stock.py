"""The parked clones of one order, and how it goes with keeping them."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import anyio

from ovms_supervisor.instance import Instance, Life
from ovms_supervisor.instance.clone_memory import PARKED_BYTES
from ovms_supervisor.pool.demand import Demand
from ovms_supervisor.pool.orders import Order
from spec.api import WarmPool
from spec.digest import Digest
from spec.instance import InstanceState

_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 60.0


class Stock:
    """Clones are handed out newest first: what was restored last has its pages in the caches still."""

    def __init__(self, order: Order, digest: Digest | None) -> None:
        self.order = order
        self.digest = digest
        """The artifact that its clones are made of; None while the reference leads nowhere."""
        self.demand = Demand(time.monotonic())
        self.parking = 0
        """Clones that are being restored."""
        self.hits = 0
        self.misses = 0
        self.trouble: str | None = None
        """Why there are fewer clones than wanted."""
        self.retry_at_s = 0.0
        self.filled = False
        self._parked: deque[Life] = deque()
        self._failures = 0
        self._changed = anyio.Event()

    @property
    def parked(self) -> int:
        """How many clones can be claimed."""
        return len(self._parked)

    def private_bytes(self) -> int:
        """What the parked clones take, by the latest samples, where there are any."""
        seats = [life.instance.seat for life in self._parked]
        return sum((seat.private_bytes if seat else 0) or PARKED_BYTES for seat in seats)

    def wanted(self) -> int:
        """How many there should be now."""
        if self.digest is None:
            return 0
        order = self.order
        return self.demand.wanted(order.least, order.usual, order.most, time.monotonic())

    def put(self, life: Life) -> None:
        """One more that can be claimed."""
        self._parked.append(life)
        self.trouble = None
        self._notify()

    def take(self) -> Life | None:
        """The newest one that still stands there, which is the caller's from now on."""
        while self._parked:
            life = self._parked.pop()
            if life.instance.state is InstanceState.PARKED:
                return life
        return None

    def take_oldest(self, count: int) -> list[Life]:
        """Those that are given up first, up to so many."""
        return [self._parked.popleft() for _ in range(min(count, len(self._parked)))]

    def remove(self, life: Life) -> bool:
        """Forget one that has ended; whether it was there."""
        try:
            self._parked.remove(life)
        except ValueError:
            return False
        return True

    def any_parked(self) -> Instance | None:
        """One of them, to look at."""
        return self._parked[-1].instance if self._parked else None

    def change(self, order: Order) -> None:
        """Another order for the same reference."""
        self.order, self.demand = order, Demand(time.monotonic())
        self.trouble, self.retry_at_s, self._failures, self.filled = None, 0.0, 0, False
        self._notify()

    def hit(self) -> None:
        """A start has claimed a clone."""
        self.hits += 1
        self.demand.note(time.monotonic())
        self._failures = 0  # they live long enough to be of use

    def missed(self) -> None:
        """A start of this artifact had to do without."""
        self.misses += 1
        self.demand.note(time.monotonic())

    def failed(self, why: str) -> None:
        """A clone could not be parked, or did not live: wait longer each time. Many that end at once count once."""
        self.trouble = why
        now_s = time.monotonic()
        if now_s >= self.retry_at_s:
            if now_s > self.retry_at_s + _LONGEST_WAIT_S:
                self._failures = 0
            self.retry_at_s = now_s + min(_FIRST_WAIT_S * 2**self._failures, _LONGEST_WAIT_S)
            self._failures = min(self._failures + 1, 16)
        self._notify()

    async def settled(self) -> None:
        """Return when there are as many as wanted, or something keeps them from being so many."""
        while self.parked < self.wanted() and self.trouble is None:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def info(self) -> WarmPool:
        """How it goes, for people and programs."""
        return WarmPool(
            manifest=self.order.reference,
            digest=self.digest,
            count=self.order.usual,
            min=self.order.least,
            max=self.order.most,
            runtime=self.order.runtime,
            wanted=self.wanted(),
            parked=self.parked,
            parking=self.parking,
            hits=self.hits,
            misses=self.misses,
            trouble=self.trouble,
        )
