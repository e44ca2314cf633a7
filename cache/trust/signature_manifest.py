"""OCI manifests that hold signatures: how Cosign attaches them to an artifact, and ours to be the same.

v2: one image manifest at the tag ``sha256-<hex>.sig``, a layer per signature, the signature in its annotation.
v3: for each signature a manifest of its own whose ``subject`` is the artifact, found by the Referrers API.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from cache.trust.bundle import MAX_BUNDLE_BYTES, SIGNATURE_PREDICATE, check_bundle, make_bundle
from cache.trust.claim import Claim, Format
from cache.trust.keys import PrivateKey
from cache.trust.simple_signing import MAX_PAYLOAD_BYTES, check_simple, simple_payload
from spec import media_types
from spec.digest import Digest, digest_of, hex_of
from spec.errors import InvalidSignature, OvmsError
from spec.oci import EMPTY_DESCRIPTOR, Descriptor, ImageManifest, decode, encode

MAX_SIGNATURES: Final = 64
"""Of one artifact and format; who can write to a repository can attach as many as he likes."""
MAX_SIGNATURE_BLOB_BYTES: Final = max(MAX_PAYLOAD_BYTES, MAX_BUNDLE_BYTES)
SIGNATURE: Final = "dev.cosignproject.cosign/signature"
_CONTENT: Final = "dev.sigstore.bundle.content"
_PREDICATE: Final = "dev.sigstore.bundle.predicateType"


@dataclass(frozen=True, slots=True)
class SignatureManifest:
    """A manifest, and the blobs that it lists; their digests have been checked by whoever read them."""

    data: bytes
    blobs: Mapping[Digest, bytes]

    @property
    def digest(self) -> Digest:
        """Of the manifest."""
        return digest_of(self.data)


def signature_tag(subject: Digest) -> str:
    """The tag at which Cosign v2 keeps the signatures of an artifact."""
    return f"sha256-{hex_of(subject)}.sig"


def decode_signature_manifest(data: bytes) -> ImageManifest:
    """Decode a manifest and bound what is to be read for it. Raises InvalidManifest, InvalidSignature."""
    manifest = decode(data, ImageManifest, "the manifest of a signature")
    if len(manifest.layers) > MAX_SIGNATURES:
        raise InvalidSignature(f"the manifest has {len(manifest.layers)} layers, more than {MAX_SIGNATURES}")
    for each in (manifest.config, *manifest.layers):
        if each.size > MAX_SIGNATURE_BLOB_BYTES:
            raise InvalidSignature(
                f"{each.digest} of a signature has {each.size} bytes, more than {MAX_SIGNATURE_BLOB_BYTES}"
            )
    return manifest


def claims(signatures: SignatureManifest, subject: Digest) -> Iterator[Claim | InvalidSignature]:
    """What each layer claims about the artifact, or why it claims nothing."""
    try:
        manifest = decode_signature_manifest(signatures.data)
    except OvmsError as error:
        yield InvalidSignature(error.detail)
        return
    for layer in manifest.layers:
        try:
            yield _claim(manifest, layer, signatures.blobs, subject)
        except InvalidSignature as error:
            yield error


def _claim(manifest: ImageManifest, layer: Descriptor, blobs: Mapping[Digest, bytes], subject: Digest) -> Claim:
    data = blobs.get(layer.content_digest)
    if data is None:
        raise InvalidSignature(f"its blob {layer.digest} is missing")
    if len(data) != layer.size or digest_of(data) != layer.digest:
        raise InvalidSignature(f"its blob is not {layer.digest} of {layer.size} bytes")
    if layer.media_type == media_types.SIMPLE_SIGNING:
        signature = layer.annotations.get(SIGNATURE)
        if signature is None:
            raise InvalidSignature(f"a payload without the annotation {SIGNATURE}")
        return check_simple(data, signature, subject)
    if layer.media_type == media_types.SIGSTORE_BUNDLE:
        if manifest.subject is None or manifest.subject.digest != subject:
            raise InvalidSignature(f"a bundle in a manifest whose subject is not {subject}")
        return check_bundle(data, subject)
    raise InvalidSignature(f"a layer of the type {layer.media_type[:100]!r} is no signature")


def sign_v2(subject: Digest, reference: str, key: PrivateKey) -> SignatureManifest:
    """A manifest for the tag with one signature; :func:`merged` puts it together with those that are there."""
    payload = simple_payload(subject, reference)
    signature = base64.b64encode(key.sign(payload)).decode()
    layer = Descriptor(media_types.SIMPLE_SIGNING, digest_of(payload), len(payload), {SIGNATURE: signature})
    return tagged([layer], {digest_of(payload): payload})


def sign_v3(subject: Descriptor, key: PrivateKey, created: datetime | None = None) -> SignatureManifest:
    """A manifest that refers to the artifact, with one bundle."""
    bundle = make_bundle(subject.content_digest, key)
    moment = (created or datetime.now(UTC)).astimezone(UTC)
    return referring(bundle, subject, {media_types.ANNOTATION_CREATED: moment.strftime("%Y-%m-%dT%H:%M:%SZ")})


def referring(bundle: bytes, subject: Descriptor, annotations: Mapping[str, str]) -> SignatureManifest:
    """The manifest around a bundle; the same for the same bundle and annotations."""
    digest = digest_of(bundle)
    manifest = ImageManifest(
        schema_version=2,
        media_type=media_types.OCI_MANIFEST,
        config=EMPTY_DESCRIPTOR,
        layers=[Descriptor(media_types.SIGSTORE_BUNDLE, digest, len(bundle))],
        artifact_type=media_types.SIGSTORE_BUNDLE,
        subject=Descriptor(subject.media_type, subject.digest, subject.size),
        annotations={**annotations, _CONTENT: "dsse-envelope", _PREDICATE: SIGNATURE_PREDICATE},
    )
    blobs = {EMPTY_DESCRIPTOR.content_digest: media_types.EMPTY_CONFIG, digest: bundle}
    return SignatureManifest(encode(manifest), blobs)


def merged(first: SignatureManifest, second: SignatureManifest) -> SignatureManifest:
    """The v2 signatures of both, each once; ``first`` itself if the second adds nothing.

    Raises InvalidManifest, InvalidSignature (more than :data:`MAX_SIGNATURES`).
    """
    layers = list(decode_signature_manifest(first.data).layers)
    known = {(each.digest, each.annotations.get(SIGNATURE)) for each in layers}
    new = [
        each
        for each in decode_signature_manifest(second.data).layers
        if (each.digest, each.annotations.get(SIGNATURE)) not in known
    ]
    if not new:
        return first
    if len(layers) + len(new) > MAX_SIGNATURES:
        raise InvalidSignature(f"the artifact would have more than {MAX_SIGNATURES} signatures")
    return tagged([*layers, *new], {**first.blobs, **second.blobs})


def tagged(layers: list[Descriptor], blobs: Mapping[Digest, bytes]) -> SignatureManifest:
    """The manifest for the tag around v2 signatures; the same for the same signatures."""
    config = msgspec.json.encode(
        {
            "architecture": "",
            "created": "0001-01-01T00:00:00Z",
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [each.digest for each in layers]},
            "config": {},
        }
    )
    manifest = ImageManifest(
        schema_version=2,
        media_type=media_types.OCI_MANIFEST,
        config=Descriptor(media_types.OCI_CONFIG, digest_of(config), len(config)),
        layers=layers,
    )
    needed = {each.content_digest: blobs[each.content_digest] for each in layers}
    return SignatureManifest(encode(manifest), {digest_of(config): config, **needed})


def format_of(manifest: ImageManifest) -> Format | None:
    """Which kind of signature a manifest holds, by what it says of itself; None: no signature."""
    types = {each.media_type for each in manifest.layers}
    if types == {media_types.SIMPLE_SIGNING}:
        return "v2"
    return "v3" if types == {media_types.SIGSTORE_BUNDLE} else None
