"""What handlers share, and work that goes on when the client that asked for it has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog
from aiohttp import web

from ovms_supervisor.api.limits import BodyRoom, Limits
from ovms_supervisor.api.remote import Remote
from ovms_supervisor.api.roles import Roles
from ovms_supervisor.loop_lag import LoopLag
from ovms_supervisor.metrics import Metrics
from spec.errors import Conflict

if TYPE_CHECKING:
    from ovms_supervisor.supervisor import Supervisor

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Operations:
    """Changes under way. A handler is cancelled when its client disconnects; the change it asked for is not."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._resumable: set[asyncio.Task[Any]] = set()

    async def run(self, change: Coroutine[Any, Any, T], *, resumable: bool = False) -> T:
        """Run a change to its end, whatever becomes of the caller.

        One that is ``resumable`` loses nothing when it is cut short, so that a daemon which stops does not wait for it.
        """
        task = self._begin(change, resumable)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                task.add_done_callback(_tell_the_log)
            elif task.cancelled() and not _is_being_cancelled():
                raise Conflict(
                    "cut short: the daemon is ending", remedy="Ask the next daemon for the same; it goes on from here."
                ) from None
            raise

    def begin(self, change: Coroutine[Any, Any, object], *, resumable: bool = False) -> None:
        """Run a change that nobody waits for."""
        self._begin(change, resumable).add_done_callback(_tell_the_log)

    def _begin(self, change: Coroutine[Any, Any, T], resumable: bool) -> asyncio.Task[T]:
        task = asyncio.create_task(change)
        for tasks in (self._tasks, self._resumable) if resumable else (self._tasks,):
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return task

    async def drain(self, limit_s: float) -> None:
        """Wait for what is under way, then cancel it; what is resumable at once."""
        for task in self._resumable:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limit_s)
        late = list(self._tasks)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


class Streams:
    """Replies that have no end of their own, each with the way to end it when the daemon stops."""

    def __init__(self) -> None:
        self._endings: set[Callable[[], Awaitable[None]]] = set()

    @contextmanager
    def open(self, end: Callable[[], Awaitable[None]]) -> Iterator[None]:
        """A stream for as long as the context lasts."""
        self._endings.add(end)
        try:
            yield
        finally:
            self._endings.discard(end)

    async def end(self) -> None:
        """End them all at once."""
        await asyncio.gather(*(end() for end in self._endings), return_exceptions=True)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _tell_the_log(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _log.warning("a change failed after its client had gone", error=str(error), kind=type(error).__name__)


@dataclass(slots=True)
class Context:
    """One daemon, as its API sees it."""

    supervisor: Supervisor
    metrics: Metrics
    lag: LoopLag
    stall_s: float = 30.0
    """A streaming client that takes nothing for so long is cut off."""
    drain_s: float = 10.0
    """How long changes under way may take when the daemon stops."""
    remote: Remote | None = None
    roles: Roles = field(default_factory=Roles)
    limits: Limits = field(default_factory=Limits)
    operations: Operations = field(default_factory=Operations)
    streams: Streams = field(default_factory=Streams)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once: waiting ends, ``/readyz`` says no."""
    body_room: BodyRoom = field(init=False)

    def __post_init__(self) -> None:
        self.body_room = BodyRoom(self.limits.large_bodies_bytes)


CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)


def reply(body: msgspec.Struct, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON reply."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json", headers=headers)
