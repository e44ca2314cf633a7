"""Keeping the note of what the external refs of an artifact were resolved to."""

from __future__ import annotations

from cache.artifact import Artifact
from cache.resolution import encode_resolution
from cache.store import Store
from spec import media_types
from spec.digest import digest_of, hex_of
from spec.oci import Descriptor


def keep_resolution(store: Store, artifact: Artifact) -> None:
    """Put the note in the place of an earlier one; the blobs are in the store. Raises NoSpace."""
    data = encode_resolution(artifact.descriptor, artifact.resolved)
    descriptor = Descriptor(
        media_types.OCI_MANIFEST,
        digest_of(data),
        len(data),
        {media_types.ANNOTATION_SUBJECT: artifact.digest},
        artifact_type=media_types.RESOLUTION,
    )
    name = f"sha256-{hex_of(artifact.digest)}.resolved"
    while True:
        present = next((each.digest for each in store.referrers(artifact.digest) if each.name == name), None)
        with store.adding() as added:
            added.append(store.put_bytes(media_types.EMPTY_CONFIG))
            if store.put_referrer(data, descriptor, name, replaces=present):
                return
