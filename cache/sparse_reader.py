"""Reading a file without making the kernel read its holes: zeros cost their hash, not memory for them."""

from __future__ import annotations

import errno
import io
import os
from typing import Final

_ZEROS: Final = bytes(1 << 20)


class SparseReader(io.RawIOBase):
    """Reads a file from its start to its end. The descriptor stays the caller's; its offset moves."""

    def __init__(self, fd: int, offset: int = 0) -> None:
        self._fd = fd
        self._offset = offset
        self._data_end = offset

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill a part of the buffer; 0 at the end of the file. Raises OSError."""
        view = memoryview(buffer)
        if self._offset >= self._data_end and (hole := self._hole()):
            count = min(hole, len(view), len(_ZEROS))
            view[:count] = _ZEROS[:count]
        else:
            count = os.preadv(self._fd, [view[: max(self._data_end - self._offset, 0)]], self._offset)
        self._offset += count
        return count

    def _hole(self) -> int:
        """Bytes of the hole at the offset; 0 if data begins there, whose end is then known, or the file ends."""
        try:
            start = os.lseek(self._fd, self._offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return max(os.fstat(self._fd).st_size - self._offset, 0)
        if start == self._offset:
            self._data_end = os.lseek(self._fd, start, os.SEEK_HOLE)
        return start - self._offset
