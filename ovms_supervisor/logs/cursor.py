"""A reader of one console log: a line number that moves on. Live reading is replay that waits."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol

from ovms_supervisor.logs import threads
from ovms_supervisor.logs.console_file import ConsoleFile, RawLine
from ovms_supervisor.logs.line_index import read_records, search
from ovms_supervisor.logs.splitter import content
from ovms_supervisor.logs.window import Window
from spec.api import LogEnd, LogGap
from spec.errors import FileMissing

BATCH_LINES = 512
BATCH_BYTES = 64 << 10

_TOO_SLOW = "this reader was too slow: the lines were dropped to keep the log within its limit"
_DROPPED = "the lines were dropped earlier to keep the log within its limit"

Item = RawLine | LogGap | LogEnd


class Source(Protocol):
    """What a cursor needs of a console log."""

    path: Path
    index_path: Path
    file: ConsoleFile
    recent: list[RawLine]
    readers: int
    closed: bool
    ended: str | None

    async def catch_up(self) -> None:
        """Index what the VMM has written up to now."""

    async def changed(self) -> None:
        """Return after the next pass, or when the log is closed."""


class Cursor:
    """Every line of the window exactly once and in order, or a LogGap in its place; then LogEnd if the guest ended.

    An async context manager: it holds two descriptors of its own, so the files may be removed meanwhile.
    """

    def __init__(self, source: Source, window: Window, *, follow: bool) -> None:
        self._source = source
        self._window = window
        self._follow = follow
        self._fds: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._seq = 1
        self._stop: int | None = None
        self._gap_reason = _DROPPED
        self._done = False

    async def __aenter__(self) -> Cursor:
        await self._source.catch_up()
        try:
            await threads.run(self._open)
        except BaseException:
            threads.submit(self._close)
            raise
        self._source.readers += 1
        if not self._follow:
            self._stop = self._source.file.next
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.readers -= 1
        # Whoever reads in a thread for a cancelled caller must be done with the descriptors first.
        await threads.run(self._close)

    async def next_batch(self) -> list[Item]:
        """The next items, at most BATCH_LINES; waits for some when following. Empty: there will be no more."""
        while not self._done:
            # Looked at before ``next``: a log that is closed gets no further lines.
            closed = self._source.closed
            stop = self._source.file.next if self._stop is None else self._stop
            if self._seq < stop:
                batch = self._remembered(stop) or await threads.run(self._read, stop)
                if batch := self._within_until(batch):
                    return batch
            elif closed or not self._follow:
                self._done = True
                if closed and self._source.ended is not None:
                    return [LogEnd(end=self._source.ended)]
            elif not await self._wait():
                self._done = True
        return []

    async def _wait(self) -> bool:
        """Wait for more; False when the window's end has come."""
        until_ns = self._window.until_ns
        if until_ns is None:
            await self._source.changed()
            return True
        try:
            async with asyncio.timeout((until_ns - time.time_ns()) / 1e9):
                await self._source.changed()
        except TimeoutError:
            return False
        return True

    def _open(self) -> None:
        try:
            console_fd = os.open(self._source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                index_fd = os.open(self._source.index_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                os.close(console_fd)
                raise
        except FileNotFoundError:
            raise FileMissing("the console log of this instance has been removed") from None
        with self._lock:
            if self._done:  # cancelled meanwhile
                os.close(console_fd)
                os.close(index_fd)
                return
            self._fds = (console_fd, index_fd)
        self._seq = self._start(index_fd)

    def _close(self) -> None:
        with self._lock:
            fds, self._fds, self._done = self._fds, None, True
        for fd in fds or ():
            os.close(fd)

    def _start(self, index_fd: int) -> int:
        """The first line of the window, which may be one that was dropped: the reader is to be told of it."""
        file, window = self._source.file, self._window
        start = 1
        if window.tail is not None:
            start = max(1, file.next - window.tail)
        if window.since_ns is not None:
            since_ns = window.since_ns
            low = search(index_fd, file.first, file.next, lambda _, record: record.ts_ns >= since_ns)
            # A time before the oldest line that is left may have had dropped lines after it.
            start = max(start, low if low > file.first else 1)
        return start

    def _remembered(self, stop: int) -> list[Item]:
        """Lines of the last pass, still in memory: what a reader that keeps up gets, without a thread."""
        recent = self._source.recent
        if not recent or not recent[0].seq <= self._seq <= recent[-1].seq:
            return []
        self._gap_reason = _TOO_SLOW
        skip = self._seq - recent[0].seq
        lines = recent[skip : skip + min(BATCH_LINES, stop - self._seq)]
        self._seq = lines[-1].seq + 1
        return list(lines)

    def _read(self, stop: int) -> list[Item]:
        file, seq = self._source.file, self._seq
        if seq >= file.first:
            with self._lock:
                lines = _read_lines(*self._fds, seq, min(BATCH_LINES, stop - seq)) if self._fds else []
            # Only now is it sure that the bytes were not dropped while we read them.
            if seq >= file.first:
                self._gap_reason = _TOO_SLOW
                self._seq = seq + len(lines)
                self._done = self._done or not lines
                return list(lines)
        return [self._gap(min(file.first, stop))]

    def _gap(self, first: int) -> LogGap:
        gap = LogGap(seq=self._seq, lost=first - self._seq, reason=self._gap_reason)
        self._seq = first
        return gap

    def _within_until(self, batch: list[Item]) -> list[Item]:
        until_ns = self._window.until_ns
        if until_ns is None:
            return batch
        for i, item in enumerate(batch):
            if isinstance(item, RawLine) and item.ts_ns > until_ns:
                self._done = True
                return batch[:i]
        return batch


def _read_lines(console_fd: int, index_fd: int, seq: int, count: int) -> list[RawLine]:
    """Up to ``count`` lines with at most BATCH_BYTES (but one line at least), read at once."""
    records = read_records(index_fd, seq, count)
    if not records:
        return []
    base = end = records[0].offset
    for taken, record in enumerate(records):
        if record.offset != end or (taken and record.end - base > BATCH_BYTES):
            del records[taken:]
            break
        end = record.end
    data = os.pread(console_fd, end - base, base)
    return [
        RawLine(seq + i, record.ts_ns, *content(data[record.offset - base : record.end - base]))
        for i, record in enumerate(records)
    ]
