"""The daemon's events: published without waiting, kept for a while, and never lost without a word.

A subscriber that falls behind gets one ``events.lost`` with the count in place of what it missed; so does one that
asks for events older than the ring holds. ``seq`` starts at 1 with every daemon.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from ovms_supervisor.clock import utc_now
from spec.api import Event

LOST = "events.lost"


class Subscription(AsyncIterator[Event]):
    """Events in order, from now or from a past one; ends when the hub closes. Close it, or use it as a context."""

    def __init__(self, hub: EventHub, backlog: list[Event], limit: int) -> None:
        self._hub = hub
        self._waiting: deque[Event] = deque(backlog)
        self._limit = limit + len(backlog)
        self._lost = 0
        self._wake = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting and not self._lost:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        if self._lost:
            first = self._waiting[0].seq if self._waiting else self._hub.last_seq + 1
            lost, self._lost = self._lost, 0
            return _lost(first - 1, lost, "the reader is too slow")
        return self._waiting.popleft()

    def close(self) -> None:
        """Leave the hub; what is queued can still be read."""
        self._hub._leave(self)
        self._closed = True
        self._wake.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _offer(self, event: Event) -> None:
        self._waiting.append(event)
        if len(self._waiting) > self._limit:
            # The oldest goes: a reader that catches up wants to know how things are now.
            dropped = self._waiting.popleft()
            self._lost += dropped.detail.get("lost", 0) if dropped.type == LOST else 1
        self._wake.set()


class EventHub:
    """Publishes to any number of subscribers; used from the event loop only, so it needs no lock."""

    def __init__(self, *, keep: int = 1024, queue: int = 256) -> None:
        self._ring: deque[Event] = deque(maxlen=keep)
        self._queue = queue
        self._subscriptions: set[Subscription] = set()
        self.last_seq = 0

    def publish(
        self,
        type: str,  # noqa: A002 - the word of the event's own field
        *,
        instance_id: str | None = None,
        name: str | None = None,
        cause: str | None = None,
        **detail: Any,
    ) -> Event:
        """Make the next event and hand it to everybody; never waits."""
        self.last_seq += 1
        event = Event(
            seq=self.last_seq,
            ts=utc_now(),
            type=type,
            instance_id=instance_id,
            name=name,
            cause=cause,
            detail=detail,
        )
        self._ring.append(event)
        for subscription in self._subscriptions:
            subscription._offer(event)
        return event

    def subscribe(self, since: int | None = None) -> Subscription:
        """Events after ``since`` as far as the ring has them, then live ones; None: live ones only."""
        backlog: list[Event] = []
        if since is not None and since > self.last_seq:
            backlog = [_lost(0, None, "the daemon was restarted"), *self._ring]
        elif since is not None:
            backlog = [event for event in self._ring if event.seq > since]
            first = backlog[0].seq if backlog else self.last_seq + 1
            if first > since + 1:
                backlog.insert(0, _lost(first - 1, first - 1 - since, "they are no longer kept"))
        subscription = Subscription(self, backlog, self._queue)
        self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """End every subscription, after what it has queued."""
        for subscription in tuple(self._subscriptions):
            subscription.close()

    def _leave(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)


def _lost(seq: int, count: int | None, reason: str) -> Event:
    """``seq`` is that of the last lost event, so that a reader which remembers it can go on from there."""
    return Event(seq=seq, ts=utc_now(), type=LOST, cause=reason, detail={} if count is None else {"lost": count})
