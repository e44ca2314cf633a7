"""Take the one disk image out of a layer's tar, and refuse whatever could lead a VMM to another file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from cache.blob_names import file_name
from cache.durable import write_all
from cache.layer_stream import layer_tar
from cache.tar_reader import Member, TarReader
from spec.digest import Digest
from spec.errors import SizeMismatch, UnsafeArchive, UnsafeDisk
from spec.oci import Descriptor
from spec.qcow2 import HEAD_BYTES, SECTOR_BYTES, BackingFormat, is_qcow2, parse_header, rewrite_backing

_HOLE_BYTES: Final = 4096
_ZEROS: Final = bytes(1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedLayer:
    """A layer as manifest.json and the OCI manifest describe it."""

    descriptor: Descriptor
    blob: Path
    format: BackingFormat
    size_bytes: int
    """Of the image in the tar."""


@dataclass(frozen=True, slots=True)
class LayerBelow:
    """An extracted layer, for the one above it."""

    digest: Digest
    path: Path
    member: str
    """Base name in its tar: what a diff that was made elsewhere may call it."""
    format: BackingFormat
    virtual_size_bytes: int


@dataclass(frozen=True, slots=True)
class ExtractedImage:
    """What was learned of an image that is acceptable."""

    member: str
    virtual_size_bytes: int


def extract_image(wanted: WantedLayer, below: LayerBelow | None, target: Path) -> ExtractedImage:
    """Write the image of a layer to a new file, with holes for zeros, durably; a diff then names ``below.path``.

    The whole blob is verified. Raises BlobNotFound, DigestMismatch, SizeMismatch, UnsafeArchive, UnsafeDisk, OSError;
    the target then is the caller's to remove.
    """
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with layer_tar(wanted.blob, wanted.descriptor) as tar:
            member = _copy_only_member(tar, wanted, fd)
        head = os.pread(fd, HEAD_BYTES, 0)
        virtual_size = _check(head, wanted, below)
        if below is not None:
            write_all(fd, rewrite_backing(head, str(below.path), below.format), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    return ExtractedImage(PurePosixPath(member.name).name, virtual_size)


def _copy_only_member(tar: TarReader, wanted: WantedLayer, fd: int) -> Member:
    found: Member | None = None
    for member in tar.members():
        if found is not None:
            raise UnsafeArchive(f"layer {wanted.descriptor.digest} holds more than one file: {member.name!r}")
        if member.size_bytes != wanted.size_bytes:
            raise SizeMismatch(
                f"the image in layer {wanted.descriptor.digest} has {member.size_bytes} bytes, "
                f"the manifest says {wanted.size_bytes}",
                expected=wanted.size_bytes,
                actual=member.size_bytes,
            )
        found = member
        offset = 0
        for chunk in tar.content():
            _write_sparse(fd, chunk, offset)
            offset += len(chunk)
        os.ftruncate(fd, offset)
    if found is None:
        raise UnsafeArchive(f"layer {wanted.descriptor.digest} holds no file")
    return found


def _write_sparse(fd: int, chunk: bytes, offset: int) -> None:
    """Write a piece of a new file, leaving out blocks of zeros."""
    if chunk == _ZEROS[: len(chunk)]:
        return
    if _ZEROS[:_HOLE_BYTES] not in chunk:  # no block of zeros anywhere: the usual case for full images
        write_all(fd, chunk, offset)
        return
    view = memoryview(chunk)
    start = 0
    while start < len(chunk):
        end = start
        while end < len(chunk) and chunk[end : end + _HOLE_BYTES].strip(b"\0"):
            end += _HOLE_BYTES
        write_all(fd, view[start:end], offset + start)
        start = end
        while start < len(chunk) and not chunk[start : start + _HOLE_BYTES].strip(b"\0"):
            start += _HOLE_BYTES


def _check(head: bytes, wanted: WantedLayer, below: LayerBelow | None) -> int:
    """The virtual size in bytes of an image that is fit for its place in the chain. Raises UnsafeDisk."""
    layer = wanted.descriptor.digest
    if wanted.format == "raw":
        if is_qcow2(head):
            raise UnsafeDisk(f"layer {layer} is called raw and is qcow2", layer=layer)
        if below is not None:
            raise UnsafeDisk(f"layer {layer} is raw: a diff must be qcow2", layer=layer)
        if not wanted.size_bytes or wanted.size_bytes % SECTOR_BYTES:
            raise UnsafeDisk(f"layer {layer} has {wanted.size_bytes} bytes: a disk has whole sectors", layer=layer)
        return wanted.size_bytes
    try:
        header = parse_header(head)
    except UnsafeDisk as error:
        raise UnsafeDisk(f"layer {layer}: {error.detail}", layer=layer) from error
    if below is None:
        if header.backing_name is not None:
            raise UnsafeDisk(f"layer {layer} is the base and has a backing file {header.backing_name!r}", layer=layer)
        return header.virtual_size_bytes
    if header.backing_name not in (file_name(below.digest), below.member):
        raise UnsafeDisk(
            f"layer {layer} has the backing file {header.backing_name!r}, which is not the layer below: that is "
            f"{file_name(below.digest)!r} or {below.member!r}",
            layer=layer,
            backing=header.backing_name,
        )
    if header.virtual_size_bytes < below.virtual_size_bytes:
        raise UnsafeDisk(
            f"layer {layer} is a disk of {header.virtual_size_bytes} bytes over one of {below.virtual_size_bytes}",
            layer=layer,
        )
    return header.virtual_size_bytes
