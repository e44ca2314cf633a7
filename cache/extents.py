"""Where a sparse file has data (lseek(2) SEEK_DATA, SEEK_HOLE), and how much memory or disk that takes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def data_extents(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """The extents ``(start, end)`` of the file that are not holes, ascending, in bytes.

    Moves the descriptor's offset: share the descriptor only with code that uses pread and pwrite. A file system that
    does not know holes says that all of it is data.
    """
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        if start >= size_bytes:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size_bytes)
        yield start, end
