"""Signatures in the local store, listed in its index like in any OCI layout."""

from __future__ import annotations

from typing import Final

from cache.index_file import ListedArtifact
from cache.store import Store
from cache.trust.signature_manifest import (
    SignatureManifest,
    decode_signature_manifest,
    format_of,
    merged,
    signature_tag,
)
from spec import media_types
from spec.digest import Digest
from spec.errors import InvalidSignature, OvmsError
from spec.oci import Descriptor

MAX_MANIFESTS: Final = 256
"""What is opened for one artifact; v3 has one for each signature."""


def local_signatures(store: Store, subject: Digest) -> list[SignatureManifest]:
    """All signature manifests of an artifact that can be read; of those that can't, nothing can be concluded.

    Raises CorruptStore for the index.
    """
    opened = [_read(store, listed, subject) for listed in store.referrers(subject)[:MAX_MANIFESTS]]
    return [each for each in opened if each is not None]


def keep_signatures(store: Store, subject: Digest, repository: str, signatures: SignatureManifest) -> bool:
    """Store signatures of an artifact beside it; whether that brought anything new.

    v2 signatures join those that are there, at ``repository:sha256-<hex>.sig``. Raises InvalidManifest,
    InvalidSignature (too many, or no signature at all), NoSpace.
    """
    kind = format_of(decode_signature_manifest(signatures.data))
    if kind is None:
        raise InvalidSignature(f"the manifest {signatures.digest} holds no signatures")
    if kind == "v3":
        known = any(each.digest == signatures.digest for each in store.referrers(subject))
        return not known and _put(store, subject, None, signatures, replaces=None)
    name = f"{repository}:{signature_tag(subject)}"
    while True:
        listed = next((each for each in store.referrers(subject) if each.name == name), None)
        present = _read(store, listed, subject) if listed else None
        joined = merged(present, signatures) if present else signatures
        if joined is present:
            return False
        if _put(store, subject, name, joined, replaces=listed.digest if listed else None):
            return True


def _put(
    store: Store, subject: Digest, name: str | None, signatures: SignatureManifest, *, replaces: Digest | None
) -> bool:
    descriptor = Descriptor(
        media_types.OCI_MANIFEST,
        signatures.digest,
        len(signatures.data),
        {media_types.ANNOTATION_SUBJECT: subject},
        artifact_type=decode_signature_manifest(signatures.data).artifact_type,
    )
    with store.adding() as added:
        added.extend([store.put_bytes(blob) for blob in signatures.blobs.values()])
        return store.put_referrer(signatures.data, descriptor, name, replaces=replaces)


def _read(store: Store, listed: ListedArtifact, subject: Digest) -> SignatureManifest | None:
    try:
        data = store.read_blob(listed.descriptor)
        manifest = decode_signature_manifest(data)
        about = listed.subject or (manifest.subject.digest if manifest.subject else None)
        if format_of(manifest) is None or about != subject:
            return None
        parts = (manifest.config, *manifest.layers)
        return SignatureManifest(data, {each.content_digest: store.read_blob(each) for each in parts})
    except OvmsError:
        return None
