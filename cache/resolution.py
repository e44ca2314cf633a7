"""What the external refs of an artifact (RFC §1: https URLs, registry references) were resolved to on this host.

The artifact stays as it is, byte for byte. Beside it the store keeps a note: an OCI manifest whose ``subject`` is the
artifact and whose layers are the blobs, each with its ref as an annotation. So the note goes when the artifact goes,
and the blobs with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args

from cache.artifact import ExternalRef, Part
from spec import media_types
from spec.digest import Digest
from spec.errors import CorruptStore
from spec.oci import EMPTY_DESCRIPTOR, Descriptor, ImageManifest, decode, encode

_REF: Final = media_types.ANNOTATION_REF
_PART: Final = media_types.ANNOTATION_PART


def encode_resolution(subject: Descriptor, resolved: Mapping[ExternalRef, Descriptor]) -> bytes:
    """The note: the same for the same blobs."""
    return encode(
        ImageManifest(
            schema_version=2,
            media_type=media_types.OCI_MANIFEST,
            config=EMPTY_DESCRIPTOR,
            layers=[
                Descriptor(each.media_type, each.digest, each.size, {_REF: ref, _PART: part})
                for (part, ref), each in sorted(resolved.items())
            ],
            artifact_type=media_types.RESOLUTION,
            subject=subject,
        )
    )


def decode_resolution(data: bytes, subject: Digest) -> dict[ExternalRef, Descriptor]:
    """The blobs by their refs. Raises InvalidManifest, CorruptStore for the note of another artifact."""
    note = decode(data, ImageManifest, "a resolution")
    if note.subject is None or note.subject.digest != subject:
        raise CorruptStore(f"the resolution of {subject} belongs to another artifact", digest=subject)
    return {
        ExternalRef(part, each.annotations[_REF]): each
        for each in note.layers
        for part in get_args(Part)
        if each.annotations.get(_PART) == part and _REF in each.annotations
    }
