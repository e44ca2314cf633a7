"""Shared mappings of a file by address, and the system calls about them.

Python's ``mmap`` can neither tell the address of a read-only mapping nor lock it, and its ``madvise`` holds the GIL;
so the system calls are made with ctypes, which releases it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Final

_MLOCK_ONFAULT: Final = 1
_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23
"""Both since Linux 5.14; older ones answer EINVAL."""
_MADV_HUGEPAGE: Final = 14
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


class MemoryMap:
    """``MAP_SHARED`` over the first ``size_bytes`` of a file, none of whose pages are touched by mapping it."""

    def __init__(self, fd: int, size_bytes: int, *, writable: bool) -> None:
        """Keeps no descriptor: ``fd`` may be closed. Raises OSError."""
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        address = _libc.mmap(None, size_bytes, protection, mmap.MAP_SHARED, fd, 0)
        if address == _MAP_FAILED:
            raise _os_error()
        self.size_bytes: Final = size_bytes
        self._address: int | None = address

    @property
    def address(self) -> int:
        """Of the first byte."""
        assert self._address is not None, "closed"  # noqa: S101 - a bug of the caller
        return self._address

    def lock(self) -> None:
        """Have every page that is or will be populated here stay in RAM. Raises OSError.

        ``MLOCK_ONFAULT``: a plain mlock(2) would fault the holes in, and tmpfs would put a page of zeros into each.
        """
        if _libc.mlock2(self.address, self.size_bytes, _MLOCK_ONFAULT):
            raise _os_error()

    def unlock(self) -> None:
        """Undo :meth:`lock`; the pages stay mapped."""
        _libc.munlock(self.address, self.size_bytes)

    def populate(self, start: int, length: int, *, write: bool = False) -> None:
        """Bring pages in and map them; with ``write``, so that holes among them become pages of the file.

        After that a store into them cannot fail: without it, one that finds the file system full is a SIGBUS.
        Raises OSError: EFAULT where a page could not be had (no space, a read error), EINVAL before Linux 5.14.
        """
        advice = _MADV_POPULATE_WRITE if write else _MADV_POPULATE_READ
        while _libc.madvise(self.address + start, length, advice):
            error = _os_error()
            if error.errno not in (errno.EINTR, errno.EAGAIN):
                raise error

    def advise_huge(self, start: int, length: int) -> None:
        """Have pages that are populated there be huge ones, where the file system can. Raises OSError."""
        if _libc.madvise(self.address + start, length, _MADV_HUGEPAGE):
            raise _os_error()

    def close(self) -> None:
        """Unmap, which also unlocks. Idempotent."""
        if self._address is not None:
            _libc.munmap(self._address, self.size_bytes)
            self._address = None


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
