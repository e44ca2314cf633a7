"""Disk layers, extracted once per host and chained: what a VMM opens as the backing files of an instance's overlay.

A layer lies in ``ovms.blobs/disks/<chain id>/`` with what is below it in the chain, because a diff names the file
below by its path: absolute, since Cloud Hypervisor before v53 takes a relative one from its working directory.
A directory appears there complete, checked and durable, or not at all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from cache.artifact import Artifact
from cache.chain_id import chain_ids
from cache.disk_image import LayerBelow, WantedLayer, extract_image
from cache.durable import sync_directory, write_durably
from cache.host_errors import host_errors
from cache.lock import exclusive
from cache.store import Store
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest
from spec.errors import SizeMismatch, UnsafeDisk
from spec.qcow2 import BackingFormat

_IMAGE: Final = "image"
_RECORD: Final = "record.json"
_READ_ONLY: Final = 0o444


@dataclass(frozen=True, slots=True)
class DiskChain:
    """The top of an artifact's disk layers, ready to be the backing file of an overlay."""

    path: Path
    format: Literal["qcow2", "raw"]
    virtual_size_bytes: int
    layers: int


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out when the layer was extracted."""

    layer: Digest
    image: str
    """The path that the layers above name: where the image was then, and is unless the store was moved."""
    member: str
    format: BackingFormat
    size_bytes: int
    virtual_size_bytes: int
    inode: int
    modified_ns: int


def materialise_disks(store: Store, artifact: Artifact) -> DiskChain | None:
    """Extract and chain an artifact's disk layers, unless they are there; None if it has no disk.

    Pin the artifact while the files are used. Any number of threads and processes may ask at once: one extracts.
    Raises BlobNotFound, DigestMismatch, SizeMismatch, UnsafeArchive, UnsafeDisk, NoSpace.
    """
    descriptors = artifact.disk_layers
    if not descriptors:
        return None
    below: LayerBelow | None = None
    with store.pinned(artifact.digest):
        ids = chain_ids(each.content_digest for each in descriptors)
        for chain_id, descriptor, layer in zip(ids, descriptors, artifact.manifest.disk_layers, strict=True):
            wanted = WantedLayer(
                descriptor=descriptor,
                blob=store.blob_path(descriptor.content_digest),
                format="qcow2" if layer.format == "qcow2" else "raw",
                size_bytes=layer.size,
            )
            below = _layer(store, store.disks_dir.absolute() / chain_id, wanted, below)
    assert below is not None  # noqa: S101 - there is at least one layer
    return DiskChain(below.path, below.format, below.virtual_size_bytes, len(descriptors))


def _layer(store: Store, directory: Path, wanted: WantedLayer, below: LayerBelow | None) -> LayerBelow:
    record = _intact(directory)
    if record is None:
        with exclusive(directory.with_suffix(".lock"), remove=True):
            record = _intact(directory) or _extract(store, directory, wanted, below)
    if record.format != wanted.format:
        raise UnsafeDisk(f"layer {record.layer} is {record.format}, the manifest says {wanted.format}")
    if record.size_bytes != wanted.size_bytes:
        raise SizeMismatch(
            f"the image in layer {record.layer} has {record.size_bytes} bytes, the manifest says {wanted.size_bytes}",
            expected=wanted.size_bytes,
            actual=record.size_bytes,
        )
    return LayerBelow(record.layer, directory / _IMAGE, record.member, record.format, record.virtual_size_bytes)


def _intact(directory: Path) -> _Record | None:
    """The record of an extracted layer; None if there is none, or if the image is not the file that was checked."""
    try:
        record = from_json((directory / _RECORD).read_bytes(), _Record)
        found = (directory / _IMAGE).stat()
    except (OSError, NotDecodable):
        return None
    was = (str(directory / _IMAGE), record.inode, record.size_bytes, record.modified_ns)
    return record if was == (record.image, found.st_ino, found.st_size, found.st_mtime_ns) else None


def _extract(store: Store, directory: Path, wanted: WantedLayer, below: LayerBelow | None) -> _Record:
    with host_errors(directory):
        store.temp.discard_directory(directory)
        part, held = store.temp.new_directory()
        try:
            image = part / _IMAGE
            extracted = extract_image(wanted, below, image)
            image.chmod(_READ_ONLY)
            found = image.stat()
            record = _Record(
                layer=wanted.descriptor.content_digest,
                image=str(directory / _IMAGE),
                member=extracted.member,
                format=wanted.format,
                size_bytes=found.st_size,
                virtual_size_bytes=extracted.virtual_size_bytes,
                inode=found.st_ino,
                modified_ns=found.st_mtime_ns,
            )
            write_durably(part / _RECORD, msgspec.json.encode(record), store.temp)
            part.rename(directory)
            sync_directory(store.disks_dir)
        except BaseException:
            store.temp.discard_directory(part)
            raise
        finally:
            os.close(held)
    return record
