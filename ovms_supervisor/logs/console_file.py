"""The writing half of a console log: index what the VMM has appended, and keep the disk use bounded.

Synchronous, for a worker thread; a lock makes a pass and the closing of the file exclude each other.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cache.statfs import is_tmpfs
from ovms_supervisor.logs.holes import punch_head
from ovms_supervisor.logs.line_index import LineIndex
from ovms_supervisor.logs.splitter import content, offsets, split

PASS_BYTES = 64 << 10
"""What one pass reads at most: some hundred microseconds of work, also for a flood of empty lines."""

_AT_ONCE_BYTES = 16 << 10
_RECENT_LINES = 1024
_KEEP_OF_LIMIT = 0.75  # dropping a quarter at a time makes it rare
_BACKLOG_LIMITS = 4
"""How many times the limit may wait to be indexed: a guest may print faster, or for days while no daemon runs."""


class RawLine(NamedTuple):
    """A line as the guest printed it, without its end; ``partial``: it was too long and goes on in the next."""

    seq: int
    ts_ns: int
    data: bytes
    partial: bool


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass did: whether there is more to read, how much it indexed, and the lines themselves if they are few."""

    more: bool = False
    lines: int = 0
    size_bytes: int = 0
    recent: list[RawLine] = field(default_factory=list)


class ConsoleFile:
    """``console.log`` with its index. ``first`` and ``next`` stay readable after closing."""

    def __init__(self, path: Path, index_path: Path, *, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._index = LineIndex(index_path)
        self._fd = -1
        self._in_memory = False
        self._consumed = 0
        self._last_ts_ns = 0
        self.can_punch = True
        """False once the file system turned out to have no holes: then the log is not bounded."""
        self.removed = False
        """True once somebody removed the file. Whoever has it open goes on writing to it, and it stays bounded."""

    @property
    def first(self) -> int:
        """The oldest line that is still there."""
        return self._index.first

    @property
    def next(self) -> int:
        """The number that the next line will have."""
        return self._index.next

    @property
    def same_file(self) -> Path | None:
        """A path of the open file, whatever has become of its name."""
        fd = self._fd
        return Path(f"/proc/self/fd/{fd}") if fd >= 0 else None

    def open(self) -> None:
        """Open or make both files and go on where the index ends. Raises OSError."""
        with self._lock:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            try:
                self._in_memory = is_tmpfs(self._path.parent)
                self._index.open()
                self._consumed = self._index.end
                if self._index.next > self._index.first:
                    self._last_ts_ns = self._index.record(self._index.next - 1).ts_ns
            except BaseException:
                self._close()
                raise

    def is_behind(self) -> bool:
        """Whether there is something that was not indexed (looks at one inode)."""
        return self._fd >= 0 and os.fstat(self._fd).st_size != self._consumed

    def advance(self) -> Pass:
        """Index up to PASS_BYTES of what is new. Raises OSError; then the same bytes are read by the next pass."""
        with self._lock:
            return self._advance(at_end=False) if self._fd >= 0 else Pass()

    def advance_at_once(self) -> Pass | None:
        """The same in the event loop, if that takes microseconds; None if it is the business of a thread.

        So it is unless the files are in memory, little is new, and nobody else is at it.
        """
        if not self._in_memory or not self._lock.acquire(blocking=False):
            return None
        try:
            if self._fd < 0:
                return Pass()
            few = os.fstat(self._fd).st_size - self._consumed <= _AT_ONCE_BYTES
            return self._advance(at_end=False) if few else None
        finally:
            self._lock.release()

    def catch_up(self, *, at_end: bool = False) -> list[Pass]:
        """Index all that is there now; ``at_end``: nothing more will come, so an unfinished last line counts."""
        with self._lock:
            if self._fd < 0:
                return []
            passes, target = [], os.fstat(self._fd).st_size
            while True:
                passes.append(self._advance(at_end=at_end))
                if not passes[-1].more or self._consumed >= target:
                    return passes

    def close(self) -> None:
        """Close both files; idempotent."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._index.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _advance(self, *, at_end: bool) -> Pass:
        status = os.fstat(self._fd)
        size, self.removed = status.st_size, not status.st_nlink
        if size < self._consumed:
            # Somebody truncated the file: what was indexed is gone, what comes is new.
            self._index.drop_before(self._index.next)
            self._consumed = 0
        if self.can_punch and size - self._consumed > _BACKLOG_LIMITS * self._limit_bytes:
            self._skip(size - self._limit_bytes // 2)
        data = os.pread(self._fd, PASS_BYTES, self._consumed)
        whole = self._consumed + len(data) >= size
        lengths = split(data, at_end=at_end and whole)
        if not lengths:
            return Pass()
        starts = offsets(self._consumed, lengths)
        # The wall clock may be set back; stamps of a log never go back, so that they can be searched.
        ts_ns = self._last_ts_ns = max(self._last_ts_ns, time.time_ns())
        seq = self._index.next
        self._index.append(starts, lengths, ts_ns)
        base, self._consumed = self._consumed, starts[-1] + lengths[-1]
        self._bound()
        recent = []
        if len(lengths) <= _RECENT_LINES:
            recent = [
                RawLine(seq + i, ts_ns, *content(data[start - base : start - base + length]))
                for i, (start, length) in enumerate(zip(starts, lengths, strict=True))
            ]
        return Pass(more=not whole, lines=len(lengths), size_bytes=self._consumed - base, recent=recent)

    def _skip(self, offset: int) -> None:
        """Drop everything before the first line that begins after ``offset``, unread: one number stands for it."""
        before = self._index.first
        try:
            self._index.drop_before(self._index.next)
            punch_head(self._fd, offset)
        except OSError as error:
            self._cannot_punch(error, before)
            return
        self._consumed = offset + os.pread(self._fd, PASS_BYTES, offset).find(b"\n") + 1
        self._index.skip_one()

    def _cannot_punch(self, error: OSError, first: int) -> None:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise error
        self._index.first = first
        self.can_punch = False

    def _bound(self) -> None:
        before = self._index.first
        if not self.can_punch or self._index.keep_within(self._limit_bytes) == before:
            return
        first = self._index.keep_within(int(self._limit_bytes * _KEEP_OF_LIMIT))
        offset = self._index.record(first).offset
        try:
            # Readers look at ``first`` after reading: it must have moved before the bytes become zeros.
            self._index.drop_before(first)
            punch_head(self._fd, offset)
        except OSError as error:
            self._cannot_punch(error, before)
