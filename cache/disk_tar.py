"""A disk image as the tar of a layer: one member, and for a diff the canonical name of what is below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache.blob_names import file_name
from cache.host_errors import host_errors, open_regular
from cache.sparse_reader import SparseReader
from cache.store import Store
from cache.tar_writer import TarWriter
from spec.digest import Digest
from spec.errors import UnsafeDisk
from spec.manifest import MAX_DISK_BYTES
from spec.qcow2 import HEAD_BYTES, SECTOR_BYTES, BackingFormat, Qcow2Header, is_qcow2, parse_header, rewrite_backing

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Below:
    """The layer that a diff is made on."""

    digest: Digest
    """Of its blob."""
    format: BackingFormat


class DiskFile:
    """An image file that is to become a layer, open for reading. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises FileMissing, InvalidInput, and UnsafeDisk for an image that no layer may be."""
        self.path = path
        self._file = os.fdopen(open_regular(path), "rb", buffering=0)
        try:
            with host_errors(path):
                self.size_bytes = os.fstat(self._file.fileno()).st_size
                self._head = os.pread(self._file.fileno(), HEAD_BYTES, 0)
            self.header = self._check()
        except BaseException:
            self._file.close()
            raise

    def _check(self) -> Qcow2Header | None:
        if is_qcow2(self._head):
            try:
                header = parse_header(self._head)
            except UnsafeDisk as error:
                raise UnsafeDisk(f"{self.path}: {error.detail}", remedy=error.remedy, path=str(self.path)) from error
            if self.size_bytes < header.cluster_bytes:
                raise UnsafeDisk(f"{self.path} is truncated", path=str(self.path))
            return header
        if not 0 < self.size_bytes <= MAX_DISK_BYTES or self.size_bytes % SECTOR_BYTES:
            raise UnsafeDisk(
                f"{self.path} has {self.size_bytes} bytes: a raw disk has whole sectors of {SECTOR_BYTES} bytes",
                remedy="Give a raw or qcow2 image.",
                path=str(self.path),
            )
        return None

    @property
    def format(self) -> BackingFormat:
        """Told by the file's first bytes."""
        return "raw" if self.header is None else "qcow2"

    def store(self, store: Store, below: Below | None) -> tuple[Digest, int]:
        """Store it as a layer's tar, not compressed; returns digest and size of the blob in bytes.

        For a diff, ``below`` is what it is made on: its name replaces the host's path in the header. Raises UnsafeDisk,
        SizeMismatch if the file changes meanwhile, NoSpace.
        """
        head = self._head
        if below is not None:
            start = rewrite_backing(head, file_name(below.digest), below.format)
            head = start + head[len(start) :]
        with store.writer() as writer:
            tar = TarWriter(writer)
            tar.add(f"disk.{self.format}", self.size_bytes, self._content(head))
            tar.finish()
            return writer.commit()

    def _content(self, head: bytes) -> Iterator[bytes]:
        yield head
        with host_errors(self.path):
            reader = SparseReader(self._file.fileno(), len(head))
            while chunk := reader.read(_CHUNK_BYTES):
                yield chunk

    def __enter__(self) -> DiskFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
