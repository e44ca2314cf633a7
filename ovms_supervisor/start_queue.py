"""Starts side by side: so many at once, some more wait for their turn, and still more are refused."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from anyio import CapacityLimiter, WouldBlock

from ovms_supervisor.clock import Stopwatch
from spec.errors import Overloaded

_PER_CPU: Final = 8
_LEAST: Final = 32
"""A VMM that starts also waits; and one that hangs must not hold up all others."""


class StartQueue:
    """What a burst of starts passes through, so that each of them is not as slow as all of them together."""

    def __init__(self, most: int, at_once: int | None = None) -> None:
        self._most = most
        self._slots = CapacityLimiter(at_once or max(_LEAST, _PER_CPU * len(os.sched_getaffinity(0))))
        self._under_way = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A start that is asked for. Raises Overloaded."""
        if self._under_way >= self._most:
            raise Overloaded(f"{self._under_way} starts are under way", under_way=self._under_way)
        with self._counted():
            yield

    @asynccontextmanager
    async def turn(self, watch: Stopwatch) -> AsyncIterator[None]:
        """A machine that is made; waiting for it is a phase of its own, if it has to wait."""
        with self._counted():
            try:
                self._slots.acquire_on_behalf_of_nowait(watch)
            except WouldBlock:
                with watch.phase("queue"):
                    await self._slots.acquire_on_behalf_of(watch)
            try:
                yield
            finally:
                self._slots.release_on_behalf_of(watch)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
