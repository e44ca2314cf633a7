"""Keeping an image file in RAM: a shared mapping of it, populated and locked, and what the kernel says about that.

Python's ``mmap`` can neither tell the address of a read-only mapping nor lock it, and its ``madvise`` holds the GIL;
so the five system calls are made with ctypes, which releases it. All of this blocks: 120 ms for each GiB.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cache.extents import data_extents
from spec.errors import HostLimit, MlockLimit, Unsupported
from spec.sizes import MIB, format_size

_MLOCK_ONFAULT: Final = 1
_MADV_POPULATE_READ: Final = 22
"""Since Linux 5.14."""
_STEP_BYTES: Final = 64 * MIB
"""Between two looks at ``stop``: about 8 ms."""
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mlock2.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
_libc.munlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


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
        address = _libc.mmap(None, self._size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, self._fd, 0)
        if address == _MAP_FAILED:
            os.close(self._fd)
            raise _os_error(path)
        self._address: int | None = address

    def lock(self) -> None:
        """Have every page that is or will be populated here stay in RAM until :meth:`unlock`. Raises MlockLimit.

        ``MLOCK_ONFAULT`` over the whole range: a plain mlock(2) would fault the holes in, and tmpfs would put a page of
        zeros into each. The kernel counts the whole range, holes included, against RLIMIT_MEMLOCK.
        """
        if not _libc.mlock2(self._address, self._size_bytes, _MLOCK_ONFAULT):
            return
        number = ctypes.get_errno()
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        allowed = "without limit" if limit == resource.RLIM_INFINITY else f"up to {format_size(limit)}"
        raise MlockLimit(
            f"locking {format_size(self._size_bytes)} of RAM image: {os.strerror(number)}; allowed {allowed}",
            needed_bytes=self._size_bytes,
            limit_bytes=limit,
        )

    def unlock(self) -> None:
        """Undo :meth:`lock`; the pages stay mapped."""
        _libc.munlock(self._address, self._size_bytes)

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
        assert self._address is not None, "closed"  # noqa: S101 - a bug of the caller
        while _libc.madvise(self._address + start, length, _MADV_POPULATE_READ):
            error = _os_error(self._path)
            if error.errno in (errno.EINTR, errno.EAGAIN):
                continue
            if error.errno == errno.EINVAL:
                raise Unsupported("populating a mapping ahead (MADV_POPULATE_READ) needs Linux 5.14") from error
            raise HostLimit(f"bringing {self._path} into RAM: {error.strerror}", errno=error.errno) from error

    def figures(self) -> MappingFigures:
        """What the kernel says now.

        Locked are the resident pages of a range whose ``VmFlags`` has ``lo``. The ``Locked`` line is not used: it
        shares out each page among the processes that map it, so it shrinks with every clone that runs.
        """
        assert self._address is not None, "closed"  # noqa: S101 - a bug of the caller
        resident = locked = here = 0
        inside = False
        for line in Path("/proc/self/smaps").read_bytes().splitlines():
            name, _, rest = line.partition(b" ")
            if not name.endswith(b":"):  # the address range that starts a mapping
                inside = self._address <= int(name.partition(b"-")[0], 16) < self._address + self._size_bytes
            elif inside and name == b"Rss:":
                here = int(rest.split()[0]) * 1024
                resident += here
            elif inside and name == b"VmFlags:" and b"lo" in rest.split():
                locked += here
        return MappingFigures(resident_bytes=resident, locked_bytes=locked)

    def close(self) -> None:
        """Unmap, which also unlocks. Idempotent."""
        if self._address is not None:
            _libc.munmap(self._address, self._size_bytes)
            os.close(self._fd)
            self._address = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _os_error(path: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(path))
