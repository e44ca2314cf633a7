"""Keeping the stocks as they should be: a few clones at a time, when no start is under way, and memory allows.

One task that sleeps until something happens: a claim, a death, an order, a clone that is parked, the end of a wait
after a failure, or demand that has ebbed away.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from ovms_supervisor.clock import Stopwatch
from ovms_supervisor.instance import Life, StopOrder
from ovms_supervisor.instance.creation import create
from ovms_supervisor.instance.host import Host
from ovms_supervisor.instance.start import start
from ovms_supervisor.pool.figures import PoolFigures
from ovms_supervisor.pool.pressure import shortage
from ovms_supervisor.pool.stock import Stock
from ovms_supervisor.pool.traffic import Traffic
from ovms_supervisor.roster import Roster
from spec.errors import OvmsError, WrongState
from spec.instance import InstanceState

_AT_ONCE: Final = 2
"""Clones that are restored at a time: as many as leave cores for starts."""
_DROPS_AT_ONCE: Final = 8
_SHARE_GIVEN_UP: Final = 8
"""When memory is scarce, one in so many clones goes at a time."""

_log = structlog.get_logger(__name__)


class Refill:
    """Parks and drops clones. ``begin`` starts a life that the supervisor looks after."""

    def __init__(
        self,
        host: Host,
        roster: Roster,
        stocks: Mapping[str, Stock],
        figures: PoolFigures,
        traffic: Traffic,
        begin: Callable[[Life], Awaitable[None]],
    ) -> None:
        self._host = host
        self._roster = roster
        self._stocks = stocks
        self._figures = figures
        self._traffic = traffic
        self._begin = begin
        self._unsaved: list[Life] = []
        self._given_up: deque[Life] = deque()
        self._stalled = False
        self._woken = anyio.Event()
        self._parking = 0
        self._dropping = 0
        self.shortage: Callable[[], str | None] = partial(
            shortage, host.settings.warm_reserve_bytes, host.layout.image_dir
        )
        """Asked, in a thread, before each clone."""

    def wake(self) -> None:
        """Something has changed."""
        self._woken.set()

    def on_stall(self) -> None:
        """The kernel says that tasks wait for memory."""
        self._stalled = True
        self._woken.set()

    def end_soon(self, *lives: Life) -> None:
        """Clones that are not to be claimed any more, and in no stock."""
        self._given_up += lives
        self._woken.set()

    def save_later(self, life: Life) -> None:
        """A claim wrote the journal before its end: let the times of the start get there, too, when there is time."""
        self._unsaved.append(life)
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._woken = woken = anyio.Event()
                if self._stalled:
                    self._stalled = False
                    if await run_sync(self.shortage) is not None:
                        await self.give_way()
                self._drop_surplus(tasks)
                if self._unsaved or self._next() is not None:
                    await self._traffic.calm()
                    await self._save()
                    if stock := self._next():  # chosen now: the burst that we waited for may have changed it
                        await self._begin_parking(stock, tasks)
                        continue
                with anyio.move_on_after(self._look_again_s()):
                    await woken.wait()

    async def put(self, stock: Stock, life: Life) -> None:
        """Let a clone that stands there be claimed."""
        if life.instance.vm is not None:
            await life.instance.vm.expect_resume()
        if life.instance.state is InstanceState.PARKED:  # else we are told of its end, or have been
            stock.put(life)

    async def give_way(self, lacking_bytes: int = 0) -> bool:
        """Memory is short: end some clones, and return when they are gone.

        False if there was none, or all of them together have not what is lacking: that would be for nothing.
        """
        if sum(stock.private_bytes() for stock in self._stocks.values()) < lacking_bytes:
            return False
        lives: list[Life] = []
        for stock in self._stocks.values():
            lives += stock.take_oldest(-(-stock.parked // _SHARE_GIVEN_UP))
            if stock.wanted():
                stock.failed("memory is short: clones have given way")
        if not lives:
            return False
        self._figures.gave_way.inc(len(lives))
        self._host.events.publish("warm.gave_way", cause="memory is short", clones=len(lives))
        slots = anyio.CapacityLimiter(_DROPS_AT_ONCE)

        async def end(life: Life) -> None:
            async with slots:
                await _end(life, "gave way: memory is short")

        async with anyio.create_task_group() as tasks:
            for life in lives:
                tasks.start_soon(end, life)
        return True

    # --- one turn -------------------------------------------------------------------------------------------------

    def _next(self) -> Stock | None:
        """The stock that lacks the largest share of its clones and may be filled now."""
        now_s = time.monotonic()
        lacking = [
            (1 - (stock.parked + stock.parking) / stock.wanted(), stock)
            for stock in self._stocks.values()
            if stock.parked + stock.parking < stock.wanted() and stock.retry_at_s <= now_s
        ]
        if not lacking or self._parking >= _AT_ONCE:
            return None
        return max(lacking, key=lambda each: each[0])[1]

    async def _begin_parking(self, stock: Stock, tasks: TaskGroup) -> None:
        scarce = await run_sync(self.shortage)
        if scarce is not None:
            for each in self._stocks.values():
                each.failed(scarce)
            return
        stock.parking += 1
        self._parking += 1
        tasks.start_soon(self._park, stock, name="park a clone")

    async def _park(self, stock: Stock) -> None:
        began_s, order, digest = time.monotonic(), stock.order, stock.digest
        assert digest is not None  # noqa: S101 - nothing is wanted otherwise
        try:
            instance, plan, held = await create(self._host, order.request(digest), Stopwatch(), pool=order.reference)
            self._roster.add(instance)
            life = Life(instance, partial(start, plan=plan, park=True), held)
            await self._begin(life)
            await instance.wait_for(InstanceState.PARKED)
            if instance.state is not InstanceState.PARKED:
                return  # the supervisor tells us of its end
            if self._stocks.get(stock.order.reference) is not stock or (stock.digest, stock.order.runtime) != (
                digest,
                order.runtime,
            ):
                self.end_soon(life)  # nobody wants it any more
            else:
                await self.put(stock, life)
                self._figures.refill_seconds.observe(time.monotonic() - began_s)
                self._tell_if_filled(stock)
        except OvmsError as error:
            _log.warning("no clone can be parked", artifact=stock.order.reference, why=error.detail)
            stock.failed(f"{error.title}: {error.detail}")
        finally:
            stock.parking -= 1
            self._parking -= 1
            self.wake()

    def _tell_if_filled(self, stock: Stock) -> None:
        full = stock.parked >= stock.wanted()
        if full and not stock.filled:
            self._host.events.publish("warm.filled", manifest=stock.order.reference, parked=stock.parked)
        stock.filled = full

    def _drop_surplus(self, tasks: TaskGroup) -> None:
        for stock in self._stocks.values():
            self._given_up += stock.take_oldest(stock.parked - stock.wanted())
        while self._given_up and self._dropping < _DROPS_AT_ONCE:
            self._dropping += 1
            tasks.start_soon(self._drop, self._given_up.popleft(), name="drop a parked clone")

    async def _drop(self, life: Life) -> None:
        try:
            await _end(life, "no longer to be kept parked")
        finally:
            self._dropping -= 1
            self.wake()

    async def _save(self) -> None:
        unsaved, self._unsaved = self._unsaved, []
        for life in unsaved:
            record = life.instance.record
            _log.info(
                "instance claimed",
                instance=record.instance_id,
                name=record.name,
                artifact=record.manifest.ref,
                ms=record.start.total_ms if record.start else None,
            )
            with suppress(WrongState):  # it has ended, or is about to: its last record says all
                await life.perform("save", life.instance.save, InstanceState.RUNNING, InstanceState.PAUSED)

    def _look_again_s(self) -> float:
        now_s, moments_s = time.monotonic(), [math.inf]
        for stock in self._stocks.values():
            if stock.parked + stock.parking < stock.wanted() and stock.retry_at_s > now_s:
                moments_s.append(stock.retry_at_s - now_s)
            if stock.order.least < stock.order.most and (ebbs_s := stock.demand.changes_in_s(now_s)) is not None:
                moments_s.append(ebbs_s + 0.001)
        return min(moments_s)


async def _end(life: Life, cause: str) -> None:
    with suppress(WrongState):  # it has ended by itself
        await life.stop(StopOrder(0, cause))
    await life.ended.wait()
