"""ECDSA keys on the curve P-256, the ones that Cosign makes: signing, verifying, and the files they are kept in."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cache.host_errors import host_errors, open_regular
from cache.trust.sealed_key import LABELS, seal, unseal
from spec.errors import InvalidKey

MAX_KEY_FILE_BYTES: Final = 64 << 10
T = TypeVar("T")
Password = Callable[[], bytes]
"""Asked only if a key is under one."""

_PEM: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_PLAIN_PRIVATE: Final = ("PRIVATE KEY", "EC PRIVATE KEY")
_ECDSA: Final = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Tells what its private key has signed."""

    key: ec.EllipticCurvePublicKey
    spki: bytes
    """SubjectPublicKeyInfo, DER."""

    @classmethod
    def of(cls, key: ec.EllipticCurvePublicKey) -> PublicKey:
        """Wrap a key. Raises InvalidKey for another curve."""
        if not isinstance(key.curve, ec.SECP256R1):
            raise InvalidKey(f"the key is on the curve {key.curve.name}; only P-256 (secp256r1) is supported")
        return cls(key, key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))

    @property
    def fingerprint(self) -> str:
        """``sha256:`` and the hash of the SPKI: what status and logs call the key."""
        return f"sha256:{hashlib.sha256(self.spki).hexdigest()}"

    @property
    def hint(self) -> str:
        """The same hash in base64, as Sigstore bundles name a key."""
        return base64.b64encode(hashlib.sha256(self.spki).digest()).decode()

    @property
    def pem(self) -> bytes:
        """The content of cosign.pub."""
        return self.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether a DER signature is this key's for these bytes."""
        try:
            self.key.verify(signature, message, _ECDSA)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """Signs. Its ``repr`` shows nothing of the secret."""

    key: ec.EllipticCurvePrivateKey
    public: PublicKey

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key, PublicKey.of(key.public_key()))

    def sign(self, message: bytes) -> bytes:
        """A DER signature over the SHA-256 of the bytes."""
        return self.key.sign(message, _ECDSA)

    def sealed(self, password: bytes) -> bytes:
        """The content of cosign.key."""
        plain = self.key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return seal(plain, password)


def read_public_key(path: Path) -> PublicKey:
    """A public key file (SPKI PEM, as cosign.pub). Raises FileMissing, PermissionMissing, InvalidKey."""
    return _explained(path, decode_public_key)


def read_private_key(path: Path, password: Password) -> PrivateKey:
    """A private key file: cosign.key, or plain PEM. Raises FileMissing, PermissionMissing, InvalidKey."""
    return _explained(path, lambda data: decode_private_key(data, password))


def decode_public_key(data: bytes) -> PublicKey:
    """Decode an SPKI PEM. Raises InvalidKey."""
    label, der = _block(data)
    if label.endswith("PRIVATE KEY"):
        raise InvalidKey("a private key was given where the public one is meant", remedy="Give the file cosign.pub.")
    if label != "PUBLIC KEY":
        raise InvalidKey(f"a PEM block {label!r} is no public key")
    try:
        key = serialization.load_der_public_key(_decoded(der))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidKey(f"the public key cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidKey(f"the key is of the kind {type(key).__name__}; only ECDSA on P-256 is supported")
    return PublicKey.of(key)


def decode_private_key(data: bytes, password: Password) -> PrivateKey:
    """Decode a cosign.key, or an unencrypted PKCS#8 or SEC 1 PEM. Raises InvalidKey."""
    label, body = _block(data)
    if label in LABELS:
        der = unseal(body, password())
    elif label in _PLAIN_PRIVATE:
        der = _decoded(body)
    elif label == "PUBLIC KEY":
        raise InvalidKey("a public key cannot sign", remedy="Give the file cosign.key.")
    else:
        raise InvalidKey(
            f"a PEM block {label!r} is no private key of a known form",
            remedy="Make one with 'ovm generate-key-pair', or give a plain EC key on P-256.",
        )
    try:
        key = serialization.load_der_private_key(der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidKey("the private key cannot be read: it is no PKCS#8 or EC key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidKey(f"the key is of the kind {type(key).__name__}; only ECDSA on P-256 is supported")
    return PrivateKey(key, PublicKey.of(key.public_key()))


def _explained(path: Path, decode: Callable[[bytes], T]) -> T:
    with os.fdopen(open_regular(path), "rb") as file, host_errors(path):
        data = file.read(MAX_KEY_FILE_BYTES + 1)
    try:
        return decode(data)
    except InvalidKey as error:
        raise InvalidKey(f"{path}: {error.detail}", remedy=error.remedy, path=str(path)) from error


def _block(data: bytes) -> tuple[str, str]:
    """Label and body of the one PEM block of a kind that matters (an EC key may have its parameters before it)."""
    if len(data) > MAX_KEY_FILE_BYTES:
        raise InvalidKey(f"a key file has at most {MAX_KEY_FILE_BYTES} bytes")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise InvalidKey("not a PEM file: it has bytes that are not ASCII") from error
    blocks = [(label, body) for label, body in _PEM.findall(text) if label != "EC PARAMETERS"]
    if len(blocks) != 1:
        raise InvalidKey(f"the file has {len(blocks)} PEM blocks; a key file has one")
    return blocks[0]


def _decoded(body: str) -> bytes:
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidKey(f"the PEM block is not base64: {error}") from error
