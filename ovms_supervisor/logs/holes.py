"""Give the disk space at the head of a file back without moving its end (``fallocate(2)``)."""

from __future__ import annotations

import ctypes
import os

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


def punch_head(fd: int, length: int) -> None:
    """Make the first ``length`` bytes read as zeros and free their whole blocks.

    Raises OSError; ``EOPNOTSUPP`` where the file system has no holes (tmpfs, ext4, xfs and btrfs have them).
    """
    if length > 0 and _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, 0, length) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
