"""A layer blob as the tar inside it: decompressed by media type, hashed on the way, in bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from cache.host_errors import host_errors
from cache.sparse_reader import SparseReader
from cache.tar_reader import TarReader
from cache.verified_blobs import check_digest, open_blob
from spec import media_types
from spec.digest import digest_from_hash
from spec.errors import InvalidManifest, SizeMismatch, UnsafeArchive
from spec.oci import Descriptor

_CHUNK_BYTES: Final = 256 * 1024
_MAX_ZSTD_WINDOW_BYTES: Final = 128 << 20
"""What zstd itself allows without being told otherwise; a decoder holds that much."""


@contextmanager
def layer_tar(path: Path, descriptor: Descriptor) -> Iterator[TarReader]:
    """The tar in a layer blob.

    Leaving the block without an error means that the whole blob is what its descriptor says: until then, what was
    read must not be used. Raises BlobNotFound, SizeMismatch, DigestMismatch, UnsafeArchive.
    """
    with os.fdopen(open_blob(path, descriptor.content_digest), "rb", buffering=0) as file, host_errors(path):
        actual = os.fstat(file.fileno()).st_size
        if actual != descriptor.size:
            raise SizeMismatch(
                f"{descriptor.digest} has {actual} bytes instead of {descriptor.size}",
                expected=descriptor.size,
                actual=actual,
            )
        hashing = _HashingReader(SparseReader(file.fileno()))
        try:
            yield TarReader(_Decompressed(hashing, descriptor.media_type))
        except UnsafeArchive:
            # Damage in the blob shows first as nonsense in the tar; say which of the two it is.
            hashing.drain()
            check_digest(descriptor, digest_from_hash(hashing.state))
            raise
        hashing.drain()
        check_digest(descriptor, digest_from_hash(hashing.state))


class _HashingReader(io.RawIOBase):
    """Hashes what passes through."""

    def __init__(self, file: SparseReader) -> None:
        self._file = file
        self.state = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer)
        self.state.update(memoryview(buffer)[:count])
        return count

    def drain(self) -> None:
        """Read to the end."""
        buffer = bytearray(_CHUNK_BYTES)
        while self.readinto(buffer):
            pass


class _Decompressed:
    """The decompressed bytes; what a decoder raises becomes UnsafeArchive."""

    def __init__(self, source: _HashingReader, media_type: str) -> None:
        self._stream = _decompressor(source, media_type)

    def read(self, size: int, /) -> bytes:
        try:
            return self._stream.read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise UnsafeArchive(f"the layer does not decompress: {error}") from error


def _decompressor(source: _HashingReader, media_type: str) -> BinaryIO:
    buffered = io.BufferedReader(source, _CHUNK_BYTES)
    match media_type:
        case media_types.DISK_LAYER:
            return buffered
        case media_types.DISK_LAYER_GZIP:
            return gzip.GzipFile(fileobj=buffered, mode="rb")  # type: ignore[return-value]
        case media_types.DISK_LAYER_ZSTD:
            decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES)
            return decoder.stream_reader(buffered, read_across_frames=True)
        case _:
            raise InvalidManifest(f"{media_type!r} is not a disk layer", path="$.layers")
