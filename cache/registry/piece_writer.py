"""From a stream to a thread: pieces are written while the next ones arrive, and never more than two are in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from anyio import CapacityLimiter

from cache.threads import ended, finish_in_thread

PIECE_BYTES: Final = 1 << 20


class PieceWriter:
    """An async context manager; at its end everything is written, unless the task was cancelled."""

    def __init__(self, write: Callable[[list[bytes]], None], threads: CapacityLimiter) -> None:
        """``write`` is called in a thread, with one call after the other."""
        self._write = write
        self._threads = threads
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._writing: asyncio.Task[None] | None = None

    async def add(self, chunk: bytes) -> None:
        """Take a chunk; waits if what came before is still being written. Raises what ``write`` raised."""
        self._held.append(chunk)
        self._held_bytes += len(chunk)
        if self._held_bytes >= PIECE_BYTES:
            await self._begin()

    async def _begin(self) -> None:
        await self._finish()
        pieces, self._held, self._held_bytes = self._held, [], 0
        self._writing = asyncio.create_task(finish_in_thread(lambda: self._write(pieces), self._threads))

    async def _finish(self) -> None:
        if self._writing is not None:
            await self._writing
            self._writing = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None or isinstance(error, Exception):  # what has arrived before a connection broke is kept
                await self._begin()
                await self._finish()
        finally:
            if self._writing is not None:
                await ended(self._writing)
