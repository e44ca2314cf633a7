"""DSSE envelopes (secure-systems-lab/dsse, protocol.md): a typed payload, signed together with its type."""

from __future__ import annotations

import msgspec


class EnvelopeSignature(msgspec.Struct, frozen=True, omit_defaults=True):
    """One signature; ``keyid`` is a hint that we don't use."""

    sig: bytes
    keyid: str = ""


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """The envelope in its JSON form; bytes are base64."""

    payload: bytes
    payload_type: str
    signatures: list[EnvelopeSignature]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: lengths before contents, so that no two pairs have the same encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
