"""Simple signing, the signatures of Cosign v2: a JSON payload, and beside it a signature over its very bytes.

::

    {"critical": {"identity": {"docker-reference": "HOST/REPO"},
                  "image": {"docker-manifest-digest": "sha256:…"},
                  "type": "cosign container image signature"},
     "optional": null}

The signed bytes are those of the blob as it is stored: nothing here is ever encoded again. ``docker-reference`` is what
the signer called the image; like Cosign we don't hold anybody to it: a signature is about a digest.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec

from cache.trust.claim import Claim
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest
from spec.errors import InvalidSignature

MAX_PAYLOAD_BYTES: Final = 64 << 10
MAX_SIGNATURE_CHARACTERS: Final = 1024
"""Of base64; a DER signature on P-256 has 96."""
_TYPE: Final = "cosign container image signature"


class _Identity(msgspec.Struct, frozen=True):
    docker_reference: str = msgspec.field(name="docker-reference")


class _Image(msgspec.Struct, frozen=True):
    docker_manifest_digest: str = msgspec.field(name="docker-manifest-digest")


class _Critical(msgspec.Struct, frozen=True):
    identity: _Identity
    image: _Image
    type: str


class _Payload(msgspec.Struct, frozen=True):
    critical: _Critical
    optional: msgspec.Raw = msgspec.Raw(b"null")


def simple_payload(subject: Digest, reference: str) -> bytes:
    """The bytes to sign for an artifact; ``reference`` is registry and repository."""
    return msgspec.json.encode(_Payload(_Critical(_Identity(reference), _Image(subject), _TYPE)))


def check_simple(payload: bytes, signature: str, subject: Digest) -> Claim:
    """What the payload and the annotation beside it claim. Raises InvalidSignature unless it is about ``subject``."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidSignature(f"the payload has {len(payload)} bytes, more than {MAX_PAYLOAD_BYTES}")
    try:
        critical = from_json(payload, _Payload).critical
    except NotDecodable as error:
        raise InvalidSignature(f"the payload is no simple signing document: {error}") from error
    if critical.type != _TYPE:
        raise InvalidSignature(f"the payload is of the type {critical.type[:100]!r} instead of {_TYPE!r}")
    if critical.image.docker_manifest_digest != subject:
        raise InvalidSignature(f"it signs {critical.image.docker_manifest_digest[:80]!r}, not {subject}")
    if len(signature) > MAX_SIGNATURE_CHARACTERS:
        raise InvalidSignature(f"the signature has {len(signature)} characters, more than {MAX_SIGNATURE_CHARACTERS}")
    try:
        der = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidSignature(f"the signature is not base64: {error}") from error
    return Claim("v2", payload, der)
