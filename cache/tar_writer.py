"""Writing a tar that depends on nothing but the names and contents of its members."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from typing import Final, Protocol

from spec.errors import SizeMismatch

_END: Final = bytes(2 * tarfile.BLOCKSIZE)


class ByteSink(Protocol):
    """Where a tar goes: a blob writer or a file."""

    def write(self, data: bytes, /) -> object:
        """Take all of it."""


class TarWriter:
    """Members are owned by root, dated 1970, mode 0644: the same contents make the same bytes on every host."""

    def __init__(self, sink: ByteSink) -> None:
        self._sink = sink

    def add(self, name: str, size_bytes: int, content: Iterable[bytes]) -> None:
        """Append a plain file. Raises SizeMismatch if the content is longer or shorter than announced."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = size_bytes, 0o644
        self._sink.write(header.tobuf(tarfile.GNU_FORMAT))
        written = 0
        for chunk in content:
            written += len(chunk)
            if written > size_bytes:
                break
            self._sink.write(chunk)
        if written != size_bytes:
            raise SizeMismatch(f"{name} has changed its size while it was read: it was {size_bytes} bytes", member=name)
        self._sink.write(bytes(-size_bytes % tarfile.BLOCKSIZE))

    def finish(self) -> None:
        """Write the end of the archive."""
        self._sink.write(_END)
