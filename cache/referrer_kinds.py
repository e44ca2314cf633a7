"""What people call the artifacts that refer to another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from spec import media_types

SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_PREDICATE: Final = "dev.sigstore.bundle.predicateType"
_SIGNATURE_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
_SBOM_WORDS: Final = ("spdx", "cyclonedx", "syft")


def kind_of(artifact_type: str, annotations: Mapping[str, str]) -> str:
    """``snapshot``, ``signature``, ``sbom``, ``attestation`` or ``other``, by what a manifest says of itself.

    A word for a listing: whether a signature is one, only its verification tells.
    """
    predicate = annotations.get(_PREDICATE, "")
    if artifact_type == media_types.MANIFEST:
        return "snapshot"
    if artifact_type == SIMPLE_SIGNING or (
        artifact_type == media_types.SIGSTORE_BUNDLE and predicate == _SIGNATURE_PREDICATE
    ):
        return "signature"
    if any(word in text.lower() for text in (artifact_type, predicate) for word in _SBOM_WORDS):
        return "sbom"
    if artifact_type == media_types.SIGSTORE_BUNDLE or "in-toto" in artifact_type:
        return "attestation"
    return "other"
