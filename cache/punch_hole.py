"""Give pages of a file back without moving anything (``fallocate(2)``)."""

from __future__ import annotations

import ctypes
import errno
import os

from cache.durable import write_all

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make a range read as zeros: a hole where the file system has holes, zeros elsewhere. Raises OSError."""
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
        return
    number = ctypes.get_errno()
    if number != errno.EOPNOTSUPP:
        raise OSError(number, os.strerror(number))
    write_all(fd, bytes(length), offset)
