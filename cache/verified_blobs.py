"""Checking blobs against their descriptors, and remembering which files have been checked."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from threading import Event, Lock
from typing import Final

from cache.host_errors import explain, host_errors
from cache.sparse_reader import SparseReader
from spec.digest import Digest, digest_from_hash, digest_of
from spec.errors import BlobNotFound, DigestMismatch, SizeMismatch
from spec.oci import Descriptor

_CHUNK_BYTES: Final = 1 << 20

_Identity = tuple[int, int, int, int, int]


def read_verified(path: Path, descriptor: Descriptor, max_bytes: int) -> bytes:
    """A small blob, checked. Raises BlobNotFound, SizeMismatch (also beyond ``max_bytes``), DigestMismatch."""
    if descriptor.size > max_bytes:
        raise SizeMismatch(f"{descriptor.digest} has {descriptor.size} bytes; at most {max_bytes} are read here")
    fd = open_blob(path, descriptor.content_digest)
    with os.fdopen(fd, "rb") as file, host_errors(path):
        data, actual_bytes = file.read(descriptor.size + 1), os.fstat(fd).st_size
    if len(data) != descriptor.size:
        raise _wrong_size(descriptor, actual_bytes)
    check_digest(descriptor, digest_of(data))
    return data


def open_blob(path: Path, digest: Digest) -> int:
    """A descriptor for reading. Raises BlobNotFound."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise BlobNotFound(f"{digest} is not in the store", digest=digest) from error
        raise explain(error, path) from error


def check_digest(descriptor: Descriptor, actual: Digest) -> None:
    """Raise DigestMismatch unless the content that was read is the descriptor's."""
    if actual != descriptor.digest:
        raise DigestMismatch(
            f"the content of {descriptor.digest} hashes to {actual}", expected=descriptor.digest, actual=actual
        )


class VerifiedBlobs:
    """Files that were hashed and found right, by inode, size and times: who changes a file changes these."""

    def __init__(self) -> None:
        self._known: dict[Digest, _Identity] = {}
        self._lock = Lock()

    def check(self, path: Path, descriptor: Descriptor, stop: Event | None = None) -> None:
        """Hash the file unless it is known. Raises BlobNotFound, SizeMismatch, DigestMismatch.

        If ``stop`` is set meanwhile, nothing is known of it, and any of these may be raised.
        """
        digest = descriptor.content_digest
        fd = open_blob(path, digest)
        try:
            with host_errors(path):
                before = _identity(fd)
                if before[2] != descriptor.size:
                    raise _wrong_size(descriptor, before[2])
                with self._lock:
                    if self._known.get(digest) == before:
                        return
                check_digest(descriptor, _hash(fd, stop))
                if _identity(fd) == before:
                    with self._lock:
                        self._known[digest] = before
        finally:
            os.close(fd)


def _identity(fd: int) -> _Identity:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _hash(fd: int, stop: Event | None) -> Digest:
    state = hashlib.sha256()
    reader = SparseReader(fd)
    while not (stop and stop.is_set()) and (chunk := reader.read(_CHUNK_BYTES)):
        state.update(chunk)
    return digest_from_hash(state)


def _wrong_size(descriptor: Descriptor, actual: int) -> SizeMismatch:
    return SizeMismatch(
        f"{descriptor.digest} has {actual} bytes instead of {descriptor.size}",
        expected=descriptor.size,
        actual=actual,
    )
