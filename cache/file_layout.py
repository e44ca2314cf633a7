"""Import and export of the file layout of RFC §8.

::

    manifest.json                byte for byte
    blobs/sha256-<hex>           everything that manifest.json refers to
    metadata/provenance.json     its signatures (cache.trust.provenance); of another form it is kept as it is
    metadata/oci-manifest.json   ours: only if the OCI manifest says more than follows from the rest, as a snapshot's
                                 ``subject`` does; with it, what comes back has the same digest

Other files are ignored: a layout may carry notes, or blobs of a later version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cache.artifact import decode_artifact, decode_oci_manifest, manifest_descriptor, manifest_layer
from cache.blob_names import file_name
from cache.compose import StoredBlob, compose
from cache.durable import write_durably
from cache.layout_source import LayoutSource, open_layout, read_document
from cache.layout_target import new_layout
from cache.sparse_reader import SparseReader
from cache.store import Store
from cache.trust.local_signatures import keep_signatures, local_signatures
from cache.trust.provenance import decode_provenance, encode_provenance
from cache.verified_blobs import check_digest, open_blob
from spec import media_types
from spec.digest import Digest, digest_from_hash, digest_of
from spec.errors import BlobNotFound, DigestMismatch, FileMissing, InvalidReference
from spec.manifest import Manifest, decode_manifest
from spec.oci import EMPTY_DESCRIPTOR, MAX_MANIFEST_BYTES, Descriptor, ImageManifest
from spec.reference import Reference, parse_blob_ref, parse_reference

_MANIFEST: Final = "manifest.json"
_OCI_MANIFEST: Final = "metadata/oci-manifest.json"
_PROVENANCE: Final = "metadata/provenance.json"
_CHUNK_BYTES: Final = 1 << 20
_COMPRESSED_LAYERS: Final = {
    b"\x1f\x8b": media_types.DISK_LAYER_GZIP,
    b"\x28\xb5\x2f\xfd": media_types.DISK_LAYER_ZSTD,
}
"""Media types by magic number: a file layout tells none."""


def import_artifact(store: Store, path: Path, reference: Reference | None, *, unnamed: bool = False) -> Digest:
    """Store the artifact in a directory or tar; returns the digest of its OCI manifest.

    Without a reference it is called by name and version of its manifest.json, if these make one, else it has no name; a
    name in a registry is not taken from there, nor any with ``unnamed``, for who does not want to take its word for it.
    Every blob is checked. Raises FileMissing, InvalidManifest, UnsupportedManifest, BlobNotFound, DigestMismatch,
    SizeMismatch, InvalidSignature (provenance of another artifact), UnsafeArchive (links, devices, names that leave the
    layout), NoSpace.
    """
    with open_layout(path) as source, store.adding() as added:
        manifest_bytes = read_document(source, _MANIFEST, MAX_MANIFEST_BYTES)
        manifest = decode_manifest(manifest_bytes)
        oci_bytes = _optional(source, _OCI_MANIFEST)
        oci = _matching_oci_manifest(oci_bytes, manifest_bytes) if oci_bytes is not None else None
        wanted = _listed_blobs(oci) if oci is not None else dict.fromkeys(_referred_blobs(manifest))
        for digest, size in wanted.items():
            added.append(_import_blob(store, source, digest, size))
        added.append(store.put_bytes(manifest_bytes))
        if oci_bytes is None:
            oci_bytes = compose(manifest, manifest_bytes, _stored_blobs(store, manifest))
        digest = digest_of(oci_bytes)
        if reference is not None and reference.digest not in (None, digest):
            raise DigestMismatch(f"{path} holds {digest}, not {reference.digest}", actual=digest)
        provenance = _optional(source, _PROVENANCE)
        signatures = decode_provenance(provenance, manifest_descriptor(oci_bytes)) if provenance is not None else []
        store.put_artifact(oci_bytes, None if unnamed else _name(manifest, reference))
        for each in signatures or ():
            keep_signatures(store, digest, _repository(manifest, reference), each)
        if provenance is not None and signatures is None:
            write_durably(_provenance_path(store, digest), provenance, store.temp)
        return digest


def export_artifact(store: Store, digest: Digest, destination: Path) -> None:
    """Write an artifact to a new directory, or to a new tar if the destination is called ``*.tar``.

    Every blob is checked on the way. Raises ArtifactNotFound, BlobNotFound, DigestMismatch, Conflict (the destination
    exists), NoSpace; then nothing is left at the destination.
    """
    is_tar = destination.suffix == ".tar"
    with store.pinned(digest):
        artifact = store.artifact(digest)
        composed = compose(artifact.manifest, artifact.manifest_bytes, _stored_blobs(store, artifact.manifest))
        documents = {_MANIFEST: artifact.manifest_bytes}
        if composed != artifact.oci_bytes:
            documents[_OCI_MANIFEST] = artifact.oci_bytes
        if signatures := local_signatures(store, digest):
            documents[_PROVENANCE] = encode_provenance(artifact.descriptor, signatures)
        elif (provenance := _provenance_path(store, digest)).exists():
            documents[_PROVENANCE] = provenance.read_bytes()
        own = {manifest_layer(artifact.oci).digest, EMPTY_DESCRIPTOR.digest}
        prefix = "ovm/" if is_tar else ""
        with new_layout(destination) as target:
            for name, data in documents.items():
                target.add(prefix + name, len(data), [data])
            for blob in artifact.blobs:
                if blob.digest not in own:
                    content = _checked(store.blob_path(blob.content_digest), blob)
                    target.add(f"{prefix}blobs/{file_name(blob.content_digest)}", blob.size, content)


def _matching_oci_manifest(oci_bytes: bytes, manifest_bytes: bytes) -> ImageManifest:
    """The OCI manifest that came with a layout. Raises DigestMismatch if it belongs to another manifest.json."""
    oci = decode_oci_manifest(oci_bytes)
    check_digest(manifest_layer(oci), digest_of(manifest_bytes))
    decode_artifact(oci_bytes, oci, manifest_bytes)
    return oci


def _listed_blobs(oci: ImageManifest) -> dict[Digest, int | None]:
    own = {manifest_layer(oci).digest, EMPTY_DESCRIPTOR.digest}
    return {each.content_digest: each.size for each in (oci.config, *oci.layers) if each.digest not in own}


def _referred_blobs(manifest: Manifest) -> list[Digest]:
    entries = [manifest.kernel, manifest.initrd, *manifest.disk_layers, manifest.ram_snapshot]
    parents = manifest.ram_snapshot.parents if manifest.ram_snapshot else []
    digests = []
    for ref in [*(each.ref for each in entries if each is not None), *parents]:
        digest = parse_blob_ref(ref).digest
        if digest is None:
            raise BlobNotFound(
                f"manifest.json refers to {ref}; a file layout holds blobs by digest only",
                remedy="Replace the reference by the digest of a file in blobs/.",
                ref=ref,
            )
        digests.append(digest)
    return digests


def _import_blob(store: Store, source: LayoutSource, digest: Digest, size: int | None) -> Digest:
    try:
        with source.open(f"blobs/{file_name(digest)}") as stream:
            return store.put_file(stream, expected=digest, size=size)[0]
    except FileMissing as error:
        raise BlobNotFound(f"{error.detail}, and the artifact needs it", digest=digest) from error


def _stored_blobs(store: Store, manifest: Manifest) -> dict[Digest, StoredBlob]:
    """What can be told of the blobs of an artifact from the blobs alone."""
    return {digest: _stored_blob(store.blob_path(digest), digest) for digest in _referred_blobs(manifest)}


def _stored_blob(path: Path, digest: Digest) -> StoredBlob:
    with open(open_blob(path, digest), "rb", buffering=0) as file:  # noqa: PTH123 - by descriptor
        head = file.read(4)
        size = file.seek(0, 2)
    kinds = (kind for magic, kind in _COMPRESSED_LAYERS.items() if head.startswith(magic))
    return StoredBlob(size_bytes=size, disk_media_type=next(kinds, media_types.DISK_LAYER))


def _checked(path: Path, descriptor: Descriptor) -> Iterator[bytes]:
    """The content of a blob, and DigestMismatch after it if it was not the descriptor's."""
    state = hashlib.sha256()
    with open(open_blob(path, descriptor.content_digest), "rb", buffering=0) as file:  # noqa: PTH123 - by descriptor
        reader = SparseReader(file.fileno())
        while chunk := reader.read(_CHUNK_BYTES):
            state.update(chunk)
            yield chunk
    check_digest(descriptor, digest_from_hash(state))


def _optional(source: LayoutSource, name: str) -> bytes | None:
    try:
        return read_document(source, name, MAX_MANIFEST_BYTES)
    except FileMissing:
        return None


def _provenance_path(store: Store, digest: Digest) -> Path:
    return store.provenance_dir / f"{file_name(digest)}.json"


def _repository(manifest: Manifest, reference: Reference | None) -> str:
    name = _name(manifest, reference)
    return parse_reference(name).name if name else "unnamed"


def _name(manifest: Manifest, reference: Reference | None) -> str | None:
    if reference is not None:
        return reference.local_name
    try:
        claimed = parse_reference(f"{manifest.name}:{manifest.version}")
    except InvalidReference:
        return None
    # What is called by a registry's name is taken to be from there: by users, by pulls, and by scopes of a policy.
    return claimed.local_name if claimed.registry is None else None
