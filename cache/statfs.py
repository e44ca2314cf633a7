"""What kind of file system a path is on (statfs(2))."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_TMPFS_MAGIC: Final = 0x01021994
_BUFFER_BYTES: Final = 256
"""More than a struct statfs of any architecture; its first word is the type."""

_libc = ctypes.CDLL(None, use_errno=True)


def is_tmpfs(path: Path) -> bool:
    """Whether the path is on a tmpfs: in memory, gone after a reboot. Raises OSError."""
    buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
    if _libc.statfs(os.fsencode(path), buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == _TMPFS_MAGIC
