"""Disk layers, extracted once per host and chained: what a VMM opens as the backing files of an instance's overlay.

A layer lies in ``ovms.blobs/disks/<chain id>/`` with what is below it in the chain, because a diff names the file
below by its path: absolute, since Cloud Hypervisor before v53 takes a relative one from its working directory.
A directory appears there complete, checked and durable, or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cache.artifact import Artifact
from cache.chain_id import chain_ids
from cache.disk_image import LayerBelow, WantedLayer, extract_image
from cache.extracted import IMAGE, Made, extracted
from cache.flat_disk import flat_disk
from cache.store import Store
from spec.errors import SizeMismatch, UnsafeDisk


@dataclass(frozen=True, slots=True)
class DiskChain:
    """The top of an artifact's disk layers, ready to be the backing file of an overlay."""

    path: Path
    format: Literal["qcow2", "raw"]
    virtual_size_bytes: int
    layers: int


def materialise_disks(store: Store, artifact: Artifact, *, most_layers: int | None = None) -> DiskChain | None:
    """Extract and chain an artifact's disk layers, unless they are there; None if it has no disk.

    A chain of more than ``most_layers`` is made into one image (:mod:`cache.flat_disk`).
    Pin the artifact while the files are used. Any number of threads and processes may ask at once: one extracts.
    Raises BlobNotFound, DigestMismatch, SizeMismatch, UnsafeArchive, UnsafeDisk, NoSpace, MissingTool.
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
        if most_layers is not None and len(descriptors) > most_layers:
            path = flat_disk(store, below.path, below.digest, below.format, below.virtual_size_bytes)
            return DiskChain(path, "qcow2", below.virtual_size_bytes, 1)
    return DiskChain(below.path, below.format, below.virtual_size_bytes, len(descriptors))


def _layer(store: Store, directory: Path, wanted: WantedLayer, below: LayerBelow | None) -> LayerBelow:
    def make(image: Path) -> Made:
        found = extract_image(wanted, below, image)
        return Made(
            layer=wanted.descriptor.content_digest,
            member=found.member,
            format=wanted.format,
            virtual_size_bytes=found.virtual_size_bytes,
        )

    record = extracted(store, directory, make)
    if record.format != wanted.format:
        raise UnsafeDisk(f"layer {record.layer} is {record.format}, the manifest says {wanted.format}")
    if record.size_bytes != wanted.size_bytes:
        raise SizeMismatch(
            f"the image in layer {record.layer} has {record.size_bytes} bytes, the manifest says {wanted.size_bytes}",
            expected=wanted.size_bytes,
            actual=record.size_bytes,
        )
    return LayerBelow(record.layer, directory / IMAGE, record.member, record.format, record.virtual_size_bytes)
