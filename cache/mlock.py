"""Keeping an image file in RAM: a shared mapping of it, populated and locked, and what the kernel says about that.

All of this blocks: 120 ms for each GiB.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cache.extents import data_extents
from cache.memory_map import MemoryMap
from spec.errors import HostLimit, MlockLimit, Unsupported
from spec.sizes import MIB, format_size

_STEP_BYTES: Final = 64 * MIB
"""Between two looks at ``stop``: about 8 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingFigures:
    """Bytes of a mapping that are in RAM, and how many of them are locked there, by ``/proc/self/smaps``."""

    resident_bytes: int
    locked_bytes: int


def raise_lock_limit() -> int:
    """Raise the soft limit of locked memory to the hard one; what it is now, in bytes (-1: none)."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return hard


class ImageMapping:
    """A read-only ``MAP_SHARED`` mapping of a whole file. Not thread-safe; :meth:`close` gives everything back."""

    def __init__(self, path: Path) -> None:
        """Map the file, without touching its pages. Raises OSError."""
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size_bytes = os.fstat(self._fd).st_size
        try:
            self._map = MemoryMap(self._fd, self._size_bytes, writable=False)
        except BaseException:
            os.close(self._fd)
            raise

    def lock(self) -> None:
        """Have every page that is or will be populated here stay in RAM until :meth:`unlock`. Raises MlockLimit.

        The kernel counts the whole range, holes included, against RLIMIT_MEMLOCK.
        """
        try:
            self._map.lock()
        except OSError as error:
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            allowed = "without limit" if limit == resource.RLIM_INFINITY else f"up to {format_size(limit)}"
            raise MlockLimit(
                f"locking {format_size(self._size_bytes)} of RAM image: {error.strerror}; allowed {allowed}",
                needed_bytes=self._size_bytes,
                limit_bytes=limit,
            ) from error

    def unlock(self) -> None:
        """Undo :meth:`lock`; the pages stay mapped."""
        self._map.unlock()

    def populate(self, stop: threading.Event | None = None) -> int:
        """Bring every page of data in and map it; holes stay holes. How many bytes that are.

        Raises Unsupported (Linux before 5.14), HostLimit (not enough memory), concurrent.futures.CancelledError soon
        after ``stop`` is set.
        """
        populated = 0
        for start, end in data_extents(self._fd, self._size_bytes):
            for at in range(start, end, _STEP_BYTES):
                if stop is not None and stop.is_set():
                    raise CancelledError
                self._populate(at, min(_STEP_BYTES, end - at))
            populated += end - start
        return populated

    def _populate(self, start: int, length: int) -> None:
        try:
            self._map.populate(start, length)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise Unsupported("populating a mapping ahead (MADV_POPULATE_READ) needs Linux 5.14") from error
            raise HostLimit(f"bringing {self._path} into RAM: {error.strerror}", errno=error.errno) from error

    def figures(self) -> MappingFigures:
        """What the kernel says now.

        Locked are the resident pages of a range whose ``VmFlags`` has ``lo``. The ``Locked`` line is not used: it
        shares out each page among the processes that map it, so it shrinks with every clone that runs.
        """
        first, end = self._map.address, self._map.address + self._size_bytes
        resident = locked = here = 0
        inside = False
        for line in Path("/proc/self/smaps").read_bytes().splitlines():
            name, _, rest = line.partition(b" ")
            if not name.endswith(b":"):  # the address range that starts a mapping
                inside = first <= int(name.partition(b"-")[0], 16) < end
            elif inside and name == b"Rss:":
                here = int(rest.split()[0]) * 1024
                resident += here
            elif inside and name == b"VmFlags:" and b"lo" in rest.split():
                locked += here
        return MappingFigures(resident_bytes=resident, locked_bytes=locked)

    def close(self) -> None:
        """Unmap, which also unlocks. Idempotent."""
        if self._fd >= 0:
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
