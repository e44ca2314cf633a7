"""What the kernel could still give to programs (proc_meminfo(5))."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")


def memory_available_bytes() -> int:
    """``MemAvailable``: what could be given to programs without swapping."""
    return _now(b"MemAvailable:")


def memory_installed_bytes() -> int:
    """``MemTotal``."""
    return _now(b"MemTotal:")


def _now(name: bytes) -> int:
    """Takes some ten microseconds: needs no thread."""
    fd = os.open(_MEMINFO, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.pread(fd, 4096, 0)
    finally:
        os.close(fd)
    return int(text.partition(name)[2].split(maxsplit=1)[0]) * 1024
