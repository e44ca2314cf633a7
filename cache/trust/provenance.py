"""``metadata/provenance.json`` of a file layout (RFC §8): the signatures of its artifact in one document.

::

    {"mediaType": "application/vnd.ovms.provenance.v1+json",
     "subject": {"mediaType": …, "digest": "sha256:…", "size": …},         the OCI manifest of the artifact
     "bundles": [{"bundle": {…}, "annotations": {…}}, …],                  Sigstore bundles, byte for byte (Cosign v3)
     "simpleSignatures": [{"payload": "base64", "signature": "base64"}, …]}    (Cosign v2)

A Sigstore bundle alone is understood too. What of it is true is found out by who holds a key; here it only has to be
about the artifact that it came with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from cache.trust.bundle import check_bundle
from cache.trust.signature_manifest import (
    MAX_SIGNATURES,
    SIGNATURE,
    SignatureManifest,
    decode_signature_manifest,
    referring,
    tagged,
)
from cache.trust.simple_signing import check_simple
from spec import media_types
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest, digest_of
from spec.errors import InvalidSignature
from spec.oci import Descriptor

PROVENANCE: Final = "application/vnd.ovms.provenance.v1+json"
_MAX_BYTES: Final = 3 << 20
"""Of what is written: readers take 4 MiB."""


class _Bundle(msgspec.Struct, frozen=True, omit_defaults=True):
    bundle: msgspec.Raw
    annotations: dict[str, str] = {}


class _Simple(msgspec.Struct, frozen=True):
    payload: bytes
    signature: str


class _Provenance(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    subject: Descriptor
    bundles: list[_Bundle] = []
    simple_signatures: list[_Simple] = []


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str


def encode_provenance(subject: Descriptor, signatures: Iterable[SignatureManifest]) -> bytes:
    """The document of an artifact's signatures; those that would make it larger than readers accept are left out."""
    document = _Provenance(PROVENANCE, Descriptor(subject.media_type, subject.digest, subject.size))
    room = _MAX_BYTES
    for each in signatures:
        manifest = decode_signature_manifest(each.data)
        for layer in manifest.layers:
            room -= 2 * layer.size + 1024
            if room < 0:
                break
            data = each.blobs[layer.content_digest]
            if layer.media_type == media_types.SIGSTORE_BUNDLE:
                document.bundles.append(_Bundle(msgspec.Raw(data), manifest.annotations))
            elif layer.media_type == media_types.SIMPLE_SIGNING and SIGNATURE in layer.annotations:
                document.simple_signatures.append(_Simple(data, layer.annotations[SIGNATURE]))
    return msgspec.json.encode(document)


def decode_provenance(data: bytes, subject: Descriptor) -> list[SignatureManifest] | None:
    """The signatures in the document, to be kept with the artifact; None for a document of another kind.

    Raises InvalidSignature if it is damaged, or if it, or one of its signatures, is about another artifact.
    """
    try:
        kind = from_json(data, _Kind).media_type
    except NotDecodable as error:
        if not error.is_json:
            raise InvalidSignature(f"provenance.json is no JSON: {error}") from error
        return None
    if kind == media_types.SIGSTORE_BUNDLE:
        return _manifests(subject, [_Bundle(msgspec.Raw(data))], [])
    if kind != PROVENANCE:
        return None
    try:
        document = from_json(data, _Provenance)
    except NotDecodable as error:
        raise InvalidSignature(f"provenance.json cannot be read: {error}") from error
    if document.subject.digest != subject.digest:
        raise InvalidSignature(f"provenance.json is about {document.subject.digest}, not {subject.digest}")
    return _manifests(subject, document.bundles, document.simple_signatures)


def _manifests(subject: Descriptor, bundles: list[_Bundle], simple: list[_Simple]) -> list[SignatureManifest]:
    if max(len(bundles), len(simple)) > MAX_SIGNATURES:
        raise InvalidSignature(f"provenance.json has more than {MAX_SIGNATURES} signatures")
    manifests: list[SignatureManifest] = []
    layers: list[Descriptor] = []
    payloads: dict[Digest, bytes] = {}
    digest = subject.content_digest
    try:
        for signed in simple:
            check_simple(signed.payload, signed.signature, digest)
            payload = digest_of(signed.payload)
            payloads[payload] = signed.payload
            layers.append(
                Descriptor(media_types.SIMPLE_SIGNING, payload, len(signed.payload), {SIGNATURE: signed.signature})
            )
        for each in bundles:
            check_bundle(bytes(each.bundle), digest)
            manifests.append(referring(bytes(each.bundle), subject, each.annotations))
    except InvalidSignature as error:
        raise InvalidSignature(f"a signature in provenance.json: {error.detail}") from error
    return [tagged(layers, payloads), *manifests] if layers else manifests
