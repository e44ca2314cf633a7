"""Memory at an address of its own, for what must not be copied."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final


class Buffer:
    """``size_bytes`` of memory, taken from the kernel as they are first touched, given back when it is garbage."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view: Final = memoryview(self._memory)
        """All of it, writable."""
        self.address: Final = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        """Good for as long as this object lives."""
