"""Private keys under a password, as ``cosign generate-key-pair`` writes them.

::

    -----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----      older: ENCRYPTED COSIGN PRIVATE KEY
    base64 of {"kdf": {"name": "scrypt", "params": {"N", "r", "p"}, "salt"},
               "cipher": {"name": "nacl/secretbox", "nonce"}, "ciphertext"}

The plaintext is PKCS#8 DER. The costs of scrypt stand in the file, so they are bounded here before they are paid.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from typing import Final, Literal

import msgspec
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from spec.decoding import NotDecodable, from_json
from spec.errors import InvalidKey

LABEL: Final = "ENCRYPTED SIGSTORE PRIVATE KEY"
LABELS: Final = (LABEL, "ENCRYPTED COSIGN PRIVATE KEY")

_N: Final = 65536
_MAX_N: Final = 1 << 20
_MAX_MEMORY_BYTES: Final = 256 << 20
_MAX_WORK: Final = 1 << 24
"""Of N·r·p: 32 times what Cosign asks for, some seconds."""
_SALT_BYTES: Final = 32


class _Params(msgspec.Struct, frozen=True):
    n: int = msgspec.field(name="N")
    r: int
    p: int


class _Kdf(msgspec.Struct, frozen=True):
    name: Literal["scrypt"]
    params: _Params
    salt: bytes


class _Cipher(msgspec.Struct, frozen=True):
    name: Literal["nacl/secretbox"]
    nonce: bytes


class _Sealed(msgspec.Struct, frozen=True):
    kdf: _Kdf
    cipher: _Cipher
    ciphertext: bytes


def seal(plaintext: bytes, password: bytes) -> bytes:
    """The PEM of a key under a password. Takes some tenths of a second and 64 MiB, as it should."""
    params, salt, nonce = _Params(_N, 8, 1), secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(SecretBox.NONCE_SIZE)
    sealed = SecretBox(_derive(params, salt, password)).encrypt(plaintext, nonce)
    document = _Sealed(_Kdf("scrypt", params, salt), _Cipher("nacl/secretbox", nonce), sealed.ciphertext)
    body = base64.encodebytes(msgspec.json.encode(document)).decode().replace("\n", "")
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "\n".join([f"-----BEGIN {LABEL}-----", *lines, f"-----END {LABEL}-----", ""]).encode()


def unseal(body: str, password: bytes) -> bytes:
    """The plaintext of what stands between the lines of the PEM. Raises InvalidKey, also for a wrong password."""
    try:
        document = from_json(base64.b64decode("".join(body.split()), validate=True), _Sealed)
    except (binascii.Error, NotDecodable, ValueError) as error:
        raise InvalidKey(f"the encrypted key cannot be read: {error}") from error
    if len(document.cipher.nonce) != SecretBox.NONCE_SIZE:
        raise InvalidKey(f"the encrypted key has a nonce of {len(document.cipher.nonce)} bytes")
    box = SecretBox(_derive(document.kdf.params, document.kdf.salt, password))
    try:
        return box.decrypt(document.ciphertext, document.cipher.nonce)
    except (CryptoError, ValueError) as error:
        raise InvalidKey(
            "the password does not open the key, or the file is damaged",
            remedy="Give the password in COSIGN_PASSWORD, or at the prompt.",
        ) from error


def _derive(params: _Params, salt: bytes, password: bytes) -> bytes:
    n, r, p = params.n, params.r, params.p
    power = n > 1 and n & (n - 1) == 0
    if not power or not (0 < n <= _MAX_N and 0 < r <= 64 and 0 < p <= 16):
        raise InvalidKey(f"the encrypted key asks for scrypt with N={n}, r={r}, p={p}, which is not accepted")
    if 128 * n * r > _MAX_MEMORY_BYTES or n * r * p > _MAX_WORK:
        raise InvalidKey(f"the encrypted key asks for too much work: scrypt with N={n}, r={r}, p={p}")
    memory = 128 * r * (n + p + 2) + (1 << 20)
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=SecretBox.KEY_SIZE)
