"""Operations on one machine: one at a time, in the order in which they were asked for, until it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.owned import owned
from spec.errors import WrongState
from spec.instance import InstanceState

T = TypeVar("T")


class Operations:
    """Runs operations in the task group of the instance's life, so that their callers may go away."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._turn = anyio.Lock()
        self._current: anyio.CancelScope | None = None
        self._ended = anyio.Event()

    async def perform(
        self, tasks: TaskGroup, what: str, work: Callable[[], Awaitable[T]], allowed: tuple[InstanceState, ...]
    ) -> T:
        """The result of ``work``, which is run when it is its turn and the instance is in one of the states.

        Raises WrongState, also if the instance ends before or meanwhile; the work is rolled back then.
        """
        self._instance.require(what, *allowed)
        if self._ended.is_set():
            raise self._too_late(what)
        return await owned(tasks, partial(self._in_turn, what, work, allowed), what)

    def at_once(self, what: str, work: Callable[[], T], allowed: tuple[InstanceState, ...]) -> T | None:
        """The result of ``work``, which waits for nothing, if nothing else is under way; None if something is.

        Raises WrongState.
        """
        self._instance.require(what, *allowed)
        return None if self._turn.locked() or self._ended.is_set() else work()

    def end(self) -> None:
        """Let nothing begin any more, and roll back what is under way; idempotent."""
        self._ended.set()
        if self._current is not None:
            self._current.cancel()

    async def wait_ended(self) -> None:
        """Return when the end has come; something may still be under way."""
        await self._ended.wait()

    async def wait_idle(self) -> None:
        """Return when nothing is under way."""
        async with self._turn:
            pass

    async def _in_turn(self, what: str, work: Callable[[], Awaitable[T]], allowed: tuple[InstanceState, ...]) -> T:
        async with self._turn:
            self._instance.require(what, *allowed)
            if not self._ended.is_set():
                try:
                    with anyio.CancelScope() as self._current:
                        return await work()
                finally:
                    self._current = None
        raise self._too_late(what)

    def _too_late(self, what: str) -> WrongState:
        instance = self._instance
        return WrongState(
            f"cannot {what} instance {instance.name or instance.id}: it is about to end", status=instance.state.value
        )
