"""Make the OCI manifest of an artifact: a function of manifest.json and the blobs it refers to, nothing else.

That it is one lets a file layout (RFC §8), which has no OCI manifest, come back as the same artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import BlobNotFound
from spec.manifest import Manifest
from spec.oci import EMPTY_DESCRIPTOR, Descriptor, ImageManifest, encode
from spec.reference import parse_blob_ref


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    """What is known of a blob when it is stored, apart from its digest."""

    size_bytes: int
    disk_media_type: str = media_types.DISK_LAYER
    """If it is used as a disk layer: how that is compressed."""
    ramsnap_header: Digest | None = None


def compose(
    manifest: Manifest, manifest_bytes: bytes, blobs: Mapping[Digest, StoredBlob], *, subject: Descriptor | None = None
) -> bytes:
    """The bytes of the OCI manifest. Raises BlobNotFound if a ref of manifest.json is not among ``blobs``."""
    layers = [
        Descriptor(
            media_types.MANIFEST,
            digest_of(manifest_bytes),
            len(manifest_bytes),
            {media_types.ANNOTATION_TITLE: "manifest.json"},
        ),
        _layer(manifest.kernel.ref, blobs, media_types.KERNEL, "kernel"),
    ]
    if manifest.initrd:
        layers.append(_layer(manifest.initrd.ref, blobs, media_types.INITRD, "initrd"))
    for index, disk in enumerate(manifest.disk_layers):
        layers.append(_layer(disk.ref, blobs, None, f"disk-{index}.tar", disk_format=disk.format))
    if manifest.ram_snapshot:
        for index, parent in enumerate(manifest.ram_snapshot.parents):
            layers.append(_layer(parent, blobs, media_types.RAMSNAP, f"ram-{index}.lz4"))
        layers.append(_layer(manifest.ram_snapshot.ref, blobs, media_types.RAMSNAP, "ram.lz4"))
    return encode(
        ImageManifest(
            schema_version=2,
            media_type=media_types.OCI_MANIFEST,
            config=EMPTY_DESCRIPTOR,
            layers=layers,
            artifact_type=media_types.MANIFEST,
            subject=subject,
        )
    )


_SUFFIXES = {media_types.DISK_LAYER_GZIP: ".gz", media_types.DISK_LAYER_ZSTD: ".zst"}


def _layer(
    ref: str,
    blobs: Mapping[Digest, StoredBlob],
    media_type: str | None,
    title: str,
    *,
    disk_format: str | None = None,
) -> Descriptor:
    digest = parse_blob_ref(ref).digest
    blob = blobs.get(digest) if digest else None
    if digest is None or blob is None:
        raise BlobNotFound(f"manifest.json refers to {ref}, which is not at hand", ref=ref)
    media_type = media_type or blob.disk_media_type
    annotations = {media_types.ANNOTATION_TITLE: title + _SUFFIXES.get(media_type, "")}
    if disk_format is not None:
        annotations[media_types.ANNOTATION_DISK_FORMAT] = disk_format
    if media_type == media_types.RAMSNAP and blob.ramsnap_header is not None:
        annotations[media_types.ANNOTATION_RAMSNAP_HEADER] = blob.ramsnap_header
    return Descriptor(media_type, digest, blob.size_bytes, annotations)
