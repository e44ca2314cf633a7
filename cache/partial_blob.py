"""A blob on its way into the store, in a file that outlives its writer: what has arrived need not come again.

Its name is the digest that it is meant to have. Whoever holds its lock (flock(2)) is the only one to write it, so two
downloads of one blob, in whatever processes, become one.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from cache.durable import write_all
from cache.host_errors import host_errors
from cache.lock import hold
from cache.sparse_reader import SparseReader
from spec.digest import digest_from_hash
from spec.errors import DigestMismatch, SizeMismatch
from spec.oci import Descriptor

_CHUNK_BYTES: Final = 1 << 20

Feed = Callable[[bytes], None]
"""Takes the content piece by piece, in order."""


class PartialBlob:
    """For one thread at a time; blocks on the disk. All methods may raise NoSpace and its like."""

    def __init__(self, directory: Path, blob: Descriptor) -> None:
        self.path: Final = directory / blob.content_digest.removeprefix("sha256:")
        self.size_bytes = 0
        """What is there and has been hashed."""
        self._blob = blob
        self._hash = hashlib.sha256()
        self._fd = -1

    def acquire(self) -> bool:
        """Open or make the file and lock it; False: somebody else is at it, or has just finished."""
        with host_errors(self.path):
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            if hold(self._fd) and self._is_in_place():
                return True
            self._close()
            return False

    def _is_in_place(self) -> bool:
        """Whether the file that was opened has not become a blob before it was locked."""
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def reread(self, feed: Feed, stop: threading.Event) -> None:
        """Hash what an earlier writer left, handing it to ``feed``; what cannot be a beginning of the blob goes."""
        with host_errors(self.path):
            if os.fstat(self._fd).st_size > self._blob.size:
                self.restart()
                return
            reader = SparseReader(self._fd)
            while not stop.is_set() and (chunk := reader.read(_CHUNK_BYTES)):
                self._hash.update(chunk)
                self.size_bytes += len(chunk)
                feed(chunk)

    def append(self, pieces: Iterable[bytes], feed: Feed) -> None:
        """Write what has arrived behind what is there. Long runs of zeros become holes."""
        data = b"".join(pieces)
        self._hash.update(data)
        with host_errors(self.path):
            if data and (data[0] or data.count(0) != len(data)):
                write_all(self._fd, data, self.size_bytes)
        self.size_bytes += len(data)
        feed(data)

    def restart(self) -> None:
        """Begin with nothing."""
        with host_errors(self.path):
            os.ftruncate(self._fd, 0)
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def check(self) -> None:
        """Raise SizeMismatch or DigestMismatch unless it is the whole blob; make it durable."""
        blob = self._blob
        if self.size_bytes != blob.size:
            raise SizeMismatch(
                f"{blob.digest} has {self.size_bytes} bytes instead of {blob.size}",
                expected=blob.size,
                actual=self.size_bytes,
            )
        if (actual := digest_from_hash(self._hash)) != blob.digest:
            raise DigestMismatch(
                f"what was sent for {blob.digest} hashes to {actual}", expected=blob.digest, actual=actual
            )
        with host_errors(self.path):
            os.ftruncate(self._fd, self.size_bytes)  # a hole at the end has not made the file longer
            os.fsync(self._fd)

    def keep(self) -> None:
        """Leave it for the next one to go on from; an empty one is no use to anybody."""
        if self._fd < 0:
            return
        if not self.size_bytes:
            self.remove()
            return
        with host_errors(self.path):
            os.ftruncate(self._fd, self.size_bytes)
        self._close()

    def remove(self) -> None:
        """Remove the file. After it has been published: only let go of it."""
        if self._fd < 0:
            return
        with host_errors(self.path):
            if self._is_in_place():
                self.path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
