"""Bodies of requests that are read while they are sent, and read again if they are sent again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, Protocol

from cache.host_errors import host_errors
from cache.verified_blobs import open_blob
from spec.errors import SizeMismatch
from spec.oci import Descriptor

_CHUNK_BYTES: Final = 1 << 20

Source = Path | bytes
"""A blob in the store, or a small one in memory."""
Position = Callable[[int], None]
"""Told the offset up to which a blob has been given to the connection."""


class Body(Protocol):
    """Each iteration begins anew."""

    @property
    def size_bytes(self) -> int:
        """How much it is, known beforehand."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks."""


class BlobPart:
    """The bytes from ``start`` up to ``end`` of a blob, never more than a chunk of them in memory."""

    def __init__(self, blob: Descriptor, source: Source, start: int, end: int, position: Position) -> None:
        self._blob = blob
        self._source = source
        self._start = start
        self._end = end
        self._position = position

    @property
    def size_bytes(self) -> int:
        """How much it is."""
        return self._end - self._start

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Raises BlobNotFound, SizeMismatch."""
        if isinstance(self._source, bytes):
            yield self._source[self._start : self._end]
            self._position(self._end)
            return
        file = await asyncio.to_thread(_File, self._source, self._blob)
        offset = self._start
        while offset < self._end:
            chunk = await asyncio.to_thread(file.read, min(_CHUNK_BYTES, self._end - offset), offset)
            yield chunk
            offset += len(chunk)
            self._position(offset)


def check_source(source: Source, blob: Descriptor) -> None:
    """Raise BlobNotFound or SizeMismatch unless the source is there and as long as it should be."""
    if isinstance(source, Path):
        _File(source, blob)
    elif len(source) != blob.size:
        raise SizeMismatch(f"{blob.digest} has {len(source)} bytes instead of {blob.size}", expected=blob.size)


class _File:
    """Closed when nobody has it any more: a thread that is left behind by a cancellation may still read from it."""

    def __init__(self, path: Path, blob: Descriptor) -> None:
        self._fd = -1
        self._path, self._blob = path, blob
        self._fd = open_blob(path, blob.content_digest)
        with host_errors(path):
            actual = os.fstat(self._fd).st_size
        if actual != blob.size:
            raise SizeMismatch(
                f"{blob.digest} has {actual} bytes instead of {blob.size}", expected=blob.size, actual=actual
            )

    def read(self, length: int, offset: int) -> bytes:
        with host_errors(self._path):
            chunk = os.pread(self._fd, length, offset)
        if not chunk:
            raise SizeMismatch(f"{self._blob.digest} became shorter than {self._blob.size} bytes")
        return chunk

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
