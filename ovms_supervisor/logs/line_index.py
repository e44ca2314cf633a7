"""``console.index``: one fixed-size record per line, so that line N is found without reading the lines before it.

A record is 24 bytes, little-endian: offset in console.log (u64), time (i64, nanoseconds since the epoch, never
decreasing), length with the line's end (u32, at least 1) and format version (u32, 1). Records of dropped lines are a
hole, so they read as zeros: a length of 0 means dropped. A torn last record (power loss) is written over.

Synchronous; for the thread that follows the log and for readers' threads. Only the follower writes.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ovms_supervisor.logs.holes import punch_head

RECORD = struct.Struct("<QqII")
_VERSION = 1


class Record(NamedTuple):
    """Where a line is and when it was seen."""

    offset: int
    ts_ns: int
    length: int
    version: int

    @property
    def end(self) -> int:
        """The offset of the line after it."""
        return self.offset + self.length


class LineIndex:
    """The records ``first`` … ``next - 1``; lines are numbered from 1, those before ``first`` were dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self.first = 1
        self.next = 1

    def open(self) -> None:
        """Open or make the file and find out what is in it."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        size = os.fstat(self._fd).st_size
        self.next = size // RECORD.size + 1
        self.first = search(self._fd, 1, self.next, lambda _, record: record.length > 0)

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def record(self, seq: int) -> Record:
        """The record of a line that was written (all zeros if it was dropped)."""
        return read_records(self._fd, seq, 1)[0]

    @property
    def end(self) -> int:
        """The offset behind the last line; 0 if no line is left."""
        return self.record(self.next - 1).end if self.next > self.first else 0

    def append(self, offsets: list[int], lengths: list[int], ts_ns: int) -> None:
        """Write the records of new lines, all seen at one time. On OSError (a full disk) nothing was appended."""
        # Columns are laid into place by slices: a flood of empty lines must not cost a Python loop per line.
        count = len(offsets)
        words = array("Q", bytes(count * RECORD.size))
        words[0::3] = array("Q", offsets)
        words[1::3] = array("Q", [ts_ns]) * count
        words[2::3] = array("Q", [length | _VERSION << 32 for length in lengths])
        data = memoryview(words).cast("B")
        position = (self.next - 1) * RECORD.size
        while data:
            written = os.pwrite(self._fd, data, position)
            data, position = data[written:], position + written
        self.next += count

    def drop_before(self, first: int) -> None:
        """Forget the lines before ``first`` and free their records' space. Raises OSError (see punch_head)."""
        self.first = first
        punch_head(self._fd, (first - 1) * RECORD.size)

    def skip_one(self) -> None:
        """Give a number to what was never seen line by line: like all before it, it counts as dropped."""
        self.next += 1
        self.first = self.next

    def keep_within(self, limit_bytes: int) -> int:
        """The first line to keep, so that the lines and their records together take at most ``limit_bytes``.

        The last line is always kept: its record is how a restarted daemon knows where to go on.
        """
        last = self.next - 1
        end = self.end
        return search(
            self._fd,
            self.first,
            last,
            lambda seq, record: end - record.offset + (last + 1 - seq) * RECORD.size <= limit_bytes,
        )


def search(fd: int, low: int, high: int, holds: Callable[[int, Record], bool]) -> int:
    """The first line of a range from which on a condition holds; ``high`` if it holds for none."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle, read_records(fd, middle, 1)[0]):
            high = middle
        else:
            low = middle + 1
    return low


def read_records(fd: int, seq: int, count: int) -> list[Record]:
    """Up to ``count`` records from line ``seq`` on."""
    data = os.pread(fd, count * RECORD.size, (seq - 1) * RECORD.size)
    return [Record._make(fields) for fields in RECORD.iter_unpack(data[: len(data) - len(data) % RECORD.size])]
