"""The artifact of a snapshot: its base's, with the memory, the disk's changes, and how the machine was configured."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cache.artifact import Artifact
from cache.compose import StoredBlob, compose
from cache.disk_tar import Below, DiskFile
from cache.ramsnap import EncodedRamsnap
from cache.store import Store
from spec import media_types
from spec.decoding import from_json
from spec.digest import Digest, is_digest
from spec.errors import InternalError
from spec.manifest import decode_manifest
from spec.reference import DEFAULT_TAG, Reference


def store_snapshot(
    store: Store,
    base: Artifact,
    *,
    ramsnap: EncodedRamsnap,
    parents: Sequence[Digest] = (),
    overlays: Sequence[Path],
    reference: Reference,
    memory_bytes: int,
    cpus: int,
    kernel_args: str,
    mlock_required: bool,
) -> Digest:
    """Store and name a snapshot whose RAM is already a blob of the store; returns the digest of its OCI manifest.

    ``parents``: what the RAM's blob is a layer on, bottom first, all in the store. ``overlays`` have what was written
    to the disk since the base, lowest first, and must not be written to any more; each becomes one more diff layer.
    Everything else of the base's manifest.json is kept, fields we do not know included, and the base is the ``subject``
    of the new artifact. If it fails, the RAM's blob is discarded too. Raises UnsafeDisk, BlobNotFound, InvalidManifest
    (too many layers), NoSpace.
    """
    document: dict[str, Any] = from_json(base.manifest_bytes, dict[str, Any])
    document |= {
        "name": reference.name,
        "version": reference.tag or DEFAULT_TAG,
        # What the base takes from elsewhere is a blob of the snapshot: it has to be what the guest runs on.
        "kernel": document["kernel"] | {"ref": base.kernel.digest, "args": kernel_args},
        **({"initrd": document["initrd"] | {"ref": base.initrd.digest}} if base.initrd else {}),
        "diskLayers": [
            layer | {"ref": blob.digest}
            for layer, blob in zip(document.get("diskLayers", []), base.disk_layers, strict=True)
        ],
        "ramSnapshot": {
            "ref": ramsnap.digest,
            "compression": "lz4",
            "preload_hint": True,
            "mlock_required": mlock_required,
            **({"parents": list(parents)} if parents else {}),
        },
        "metadata": document.get("metadata", {}) | {"created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")},
        "runtimeHints": document.get("runtimeHints", {}) | {"defaultMemoryBytes": memory_bytes, "defaultCpus": cpus},
    }
    blobs = {
        each.content_digest: StoredBlob(size_bytes=each.size, disk_media_type=each.media_type)
        for each in (base.kernel, base.initrd, *base.disk_layers)
        if each is not None
    }
    blobs[ramsnap.digest] = StoredBlob(size_bytes=ramsnap.size_bytes, ramsnap_header=ramsnap.header_digest)
    for parent in parents:
        blobs[parent] = StoredBlob(
            size_bytes=store.blob_path(parent).stat().st_size, ramsnap_header=_header_digest(base, parent)
        )
    with store.pinned(base.digest), store.adding() as added:
        added.append(ramsnap.digest)
        below = _top_layer(base) if overlays else None
        for overlay in overlays:
            with DiskFile(overlay) as disk:
                digest, size = disk.store(store, below)
                layer = {"ref": digest, "format": "qcow2", "size": disk.size_bytes}
            added.append(digest)
            blobs[digest] = StoredBlob(size_bytes=size)
            document["diskLayers"] = [*document["diskLayers"], layer]
            below = Below(digest, "qcow2")
        manifest_bytes = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
        manifest = decode_manifest(manifest_bytes)
        added.append(store.put_bytes(manifest_bytes))
        oci_bytes = compose(manifest, manifest_bytes, blobs, subject=base.descriptor)
        return store.put_artifact(oci_bytes, reference.local_name)


def _header_digest(base: Artifact, ramsnap: Digest) -> Digest | None:
    """Of a RAM snapshot that the base, too, consists of."""
    for layer in base.oci.layers:
        annotation = layer.annotations.get(media_types.ANNOTATION_RAMSNAP_HEADER)
        if layer.digest == ramsnap and annotation is not None and is_digest(annotation):
            return Digest(annotation)
    return None


def _top_layer(base: Artifact) -> Below:
    if not base.disk_layers:
        raise InternalError(f"an overlay of an artifact without a disk: {base.digest}")
    top_format = base.manifest.disk_layers[-1].format
    return Below(base.disk_layers[-1].content_digest, "qcow2" if top_format == "qcow2" else "raw")
