"""Sigstore bundles, the signatures of Cosign v3: a DSSE envelope around an in-toto statement about the artifact.

The same envelope carries SBOMs and other attestations. What makes it a signature is the statement's predicate type, so
that is demanded: else anybody's scan report, signed by the right key, would pass for the approval of an artifact.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cache.trust.claim import Claim
from cache.trust.dsse import Envelope, EnvelopeSignature, pre_authentication_encoding
from cache.trust.keys import PrivateKey
from spec import media_types
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest, hex_of
from spec.errors import InvalidSignature

MAX_BUNDLE_BYTES: Final = 256 << 10
SIGNATURE_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_MAX_SUBJECTS: Final = 64


class _KeyHint(msgspec.Struct, frozen=True, omit_defaults=True):
    hint: str = ""


class _Material(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    public_key: _KeyHint | None = None


class _Bundle(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: Envelope | None = None


class _Subject(msgspec.Struct, frozen=True):
    digest: dict[str, str]


class _Statement(msgspec.Struct, frozen=True, rename={"predicate_type": "predicateType", "type": "_type"}):
    type: str
    subject: list[_Subject]
    predicate_type: str
    predicate: msgspec.Raw = msgspec.Raw(b"{}")


def make_bundle(subject: Digest, key: PrivateKey) -> bytes:
    """The bundle that signs an artifact."""
    statement = _Statement(_STATEMENT, [_Subject({"sha256": hex_of(subject)})], SIGNATURE_PREDICATE)
    payload = msgspec.json.encode(statement)
    signature = key.sign(pre_authentication_encoding(media_types.IN_TOTO, payload))
    return msgspec.json.encode(
        _Bundle(
            media_types.SIGSTORE_BUNDLE,
            _Material(_KeyHint(key.public.hint)),
            Envelope(payload, media_types.IN_TOTO, [EnvelopeSignature(signature)]),
        )
    )


def check_bundle(data: bytes, subject: Digest) -> Claim:
    """What a bundle claims. Raises InvalidSignature unless it is a signature, by a key, of ``subject``."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise InvalidSignature(f"the bundle has {len(data)} bytes, more than {MAX_BUNDLE_BYTES}")
    try:
        bundle = from_json(data, _Bundle)
    except NotDecodable as error:
        raise InvalidSignature(f"not a Sigstore bundle: {error}") from error
    if bundle.media_type != media_types.SIGSTORE_BUNDLE:
        raise InvalidSignature(f"the bundle is of the type {bundle.media_type[:100]!r}, which is not supported")
    if bundle.verification_material.public_key is None:
        raise InvalidSignature("it was made with a certificate (keyless); only signatures by a key are supported")
    envelope = bundle.dsse_envelope
    if envelope is None:
        raise InvalidSignature("the bundle has no DSSE envelope")
    if envelope.payload_type != media_types.IN_TOTO:
        raise InvalidSignature(f"the envelope holds {envelope.payload_type[:100]!r} instead of {media_types.IN_TOTO!r}")
    if len(envelope.signatures) != 1:
        raise InvalidSignature(f"the envelope has {len(envelope.signatures)} signatures; a bundle has one")
    _check_statement(envelope.payload, subject)
    message = pre_authentication_encoding(envelope.payload_type, envelope.payload)
    return Claim("v3", message, envelope.signatures[0].sig)


def _check_statement(payload: bytes, subject: Digest) -> None:
    try:
        statement = from_json(payload, _Statement)
    except NotDecodable as error:
        raise InvalidSignature(f"the payload is no in-toto statement: {error}") from error
    if statement.type != _STATEMENT:
        raise InvalidSignature(f"the statement is of the type {statement.type[:100]!r} instead of {_STATEMENT!r}")
    if statement.predicate_type != SIGNATURE_PREDICATE:
        raise InvalidSignature(f"it is an attestation of the type {statement.predicate_type[:200]!r}, not a signature")
    if len(statement.subject) > _MAX_SUBJECTS:
        raise InvalidSignature(f"the statement has {len(statement.subject)} subjects, more than {_MAX_SUBJECTS}")
    if all(each.digest.get("sha256") != hex_of(subject) for each in statement.subject):
        found = [each.digest.get("sha256", "?")[:64] for each in statement.subject[:3]]
        raise InvalidSignature(f"it signs {', '.join(map('sha256:{}'.format, found)) or 'nothing'}, not {subject}")
