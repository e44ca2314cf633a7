"""The part of the store that knows content by its digest, and the lock and files that all of it shares.

Nothing is visible under its name before it is complete and durable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Final

from cache.blob_writer import BlobWriter
from cache.claims import Claims
from cache.durable import sync_directory
from cache.host_errors import host_errors, open_regular
from cache.lock import exclusive
from cache.pins import Pins
from cache.sparse_reader import SparseReader
from cache.tar_reader import ByteStream
from cache.temp_area import TempArea
from cache.verified_blobs import VerifiedBlobs, read_verified
from spec.digest import Digest, hex_of
from spec.oci import MAX_MANIFEST_BYTES, Descriptor

_CHUNK_BYTES: Final = 1 << 20


class BlobStore:
    """Blobs and pins; ``Store`` adds the names. Safe for threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.temp = TempArea(root / "ovms.blobs" / "tmp")
        self.partial_dir = root / "ovms.blobs" / "partial"
        self._blobs_dir = root / "blobs" / "sha256"
        self._pins_dir = root / "ovms.blobs" / "pins"
        self._lock = root / "ovms.blobs" / "lock"
        self._claims_dir = root / "ovms.blobs" / "claims"
        self._pins = Pins(self._pins_dir)
        self._claims = Claims(self._claims_dir, self.temp)
        self._verified = VerifiedBlobs()

    def close(self) -> None:
        """Give up what this object has pinned; it may be used again. The end of the process does it too."""
        with self._locked():
            self._pins.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with exclusive(self._lock), host_errors(self.root):
            yield

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self._blobs_dir / hex_of(digest)

    def has_blob(self, digest: Digest) -> bool:
        """Whether there is a blob of that digest; its content is not looked at."""
        return self.blob_path(digest).is_file()

    def read_blob(self, descriptor: Descriptor, *, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """The content, checked. Raises BlobNotFound, SizeMismatch (also beyond ``max_bytes``), DigestMismatch."""
        return read_verified(self.blob_path(descriptor.content_digest), descriptor, max_bytes)

    def verify_blob(self, descriptor: Descriptor, stop: Event | None = None) -> Path:
        """Check a blob's size and digest and return its path.

        A blob is hashed once in the life of this object, and again only if its file has changed since.
        ``stop`` ends it early, with an error. Raises BlobNotFound, SizeMismatch, DigestMismatch.
        """
        path = self.blob_path(descriptor.content_digest)
        self._verified.check(path, descriptor, stop)
        return path

    def writer(self) -> BlobWriter:
        """A writer of one blob; what it commits stays at least until it is discarded, or ``Store.adding`` ends."""
        return BlobWriter(self.temp, self._publish)

    def put_bytes(self, data: bytes) -> Digest:
        """Store a small blob."""
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()[0]

    def put_file(
        self, source: Path | ByteStream, *, expected: Digest | None = None, size: int | None = None
    ) -> tuple[Digest, int]:
        """Store a copy of a file; returns digest and size in bytes.

        With ``size``, not a byte more is read from a stream. Raises FileMissing, InvalidInput, SizeMismatch,
        DigestMismatch.
        """
        if isinstance(source, Path):
            with os.fdopen(open_regular(source), "rb", buffering=0) as file, host_errors(source):
                return self._copy(SparseReader(file.fileno()), expected, size)
        return self._copy(source, expected, size)

    def take_file(self, path: Path, digest: Digest) -> None:
        """Move a finished, synced file of this file system into the store.

        For a caller that wrote the file itself and computed the digest meanwhile: nothing is read again.
        """
        with host_errors(path):
            self._publish(path, digest)

    def _copy(self, source: ByteStream, expected: Digest | None, size: int | None) -> tuple[Digest, int]:
        with self.writer() as writer:
            limit = size + 1 if size is not None else None
            while limit is None or writer.size_bytes < limit:
                room = _CHUNK_BYTES if limit is None else min(_CHUNK_BYTES, limit - writer.size_bytes)
                chunk = source.read(room)
                if not chunk:
                    break
                writer.write(chunk)
            return writer.commit(expected, size)

    def _publish(self, temp: Path, digest: Digest) -> None:
        with self._locked():
            self._pins.add_fresh(digest)
            temp.rename(self.blob_path(digest))  # also over a blob of that name: it may be damaged
        sync_directory(self._blobs_dir)

    def pin(self, digest: Digest) -> None:
        """Keep a blob, or an artifact with all its blobs and extracted disks, until as many :meth:`unpin` calls.

        For what runs from the store. Other processes respect it; it ends with this process.
        """
        with self._locked():
            self._pins.hold(digest)

    def unpin(self, digest: Digest) -> None:
        """Undo one :meth:`pin`."""
        with self._locked():
            self._pins.release(digest)

    @contextmanager
    def pinned(self, digest: Digest) -> Iterator[None]:
        """Pin for the length of a block."""
        self.pin(digest)
        try:
            yield
        finally:
            self.unpin(digest)

    def claim(self, owner: str, witness: Path, digests: Iterable[Digest], *, durable: bool = False) -> None:
        """Keep blobs, or artifacts with all their blobs and extracted disks, for as long as a file or directory exists.

        In the place of what the owner has claimed before. Unlike a pin it outlives the process, and also the host's
        next power cut if it is ``durable``. Raises NoSpace, PermissionMissing.
        """
        with self._locked():
            self._claims.make(owner, witness, digests, durable=durable)

    def disclaim(self, owner: str) -> None:
        """Give up what an owner has claimed, if anything."""
        with self._locked():
            self._claims.drop(owner)

    def disclaim_for_the_dead(self) -> None:
        """Give up what owners that are gone have claimed; a damaged claim stays. Raises HostLimit and its kinds."""
        with self._locked(), host_errors(self._claims_dir):
            self._claims.drop_dead()
