"""Writing one blob: hashed on the way, durable before it is visible, gone if anything fails."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cache.durable import write_all
from cache.host_errors import host_errors
from cache.temp_area import TempArea
from spec.digest import Digest, digest_from_hash
from spec.errors import DigestMismatch, SizeMismatch

_ZEROS: Final = bytes(1 << 20)
_SMALLEST_HOLE: Final = 64 * 1024


class BlobWriter:
    """A context manager: :meth:`write` in order, then :meth:`commit`; without a commit nothing is left.

    Long runs of zeros become holes, so that the blob of a sparse disk takes no more space than the disk.
    Made by ``Store.writer()``. For one thread.
    """

    def __init__(self, temp: TempArea, publish: Callable[[Path, Digest], None]) -> None:
        """``publish`` renames the finished file to where its digest belongs, and makes the name durable."""
        self._publish = publish
        self._hash = hashlib.sha256()
        self._size = 0
        self._committed = False
        with host_errors(temp.directory):
            self._path, self._fd = temp.new_file()

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append. Raises NoSpace."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        with host_errors(self._path):
            for start in range(0, len(view), len(_ZEROS)):
                self._put(view[start : start + len(_ZEROS)])
        return len(view)

    def commit(self, expected: Digest | None = None, size_bytes: int | None = None) -> tuple[Digest, int]:
        """Publish what was written; returns digest and size in bytes.

        Raises SizeMismatch or DigestMismatch if it is not what was expected, and NoSpace; then nothing is published.
        """
        digest = digest_from_hash(self._hash)
        if size_bytes is not None and self._size != size_bytes:
            raise SizeMismatch(f"{self._size} bytes instead of {size_bytes}", expected=size_bytes, actual=self._size)
        if expected is not None and digest != expected:
            raise DigestMismatch(f"the content hashes to {digest}, not {expected}", expected=expected, actual=digest)
        with host_errors(self._path):
            os.ftruncate(self._fd, self._size)  # a hole at the end has not made the file longer
            os.fsync(self._fd)
            self._publish(self._path, digest)
        self._committed = True
        return digest, self._size

    def _put(self, view: memoryview) -> None:
        if len(view) >= _SMALLEST_HOLE and not view[0] and view.tobytes() == _ZEROS[: len(view)]:
            self._size += len(view)
            return
        write_all(self._fd, view, self._size)
        self._size += len(view)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)
