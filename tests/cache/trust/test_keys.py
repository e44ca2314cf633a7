"""Keys: our files and those of others, and everything that is none."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.secret import SecretBox

from cache.trust.keys import (
    MAX_KEY_FILE_BYTES,
    PrivateKey,
    decode_private_key,
    decode_public_key,
    read_private_key,
    read_public_key,
)
from spec.errors import FileMissing, InvalidInput, InvalidKey

MESSAGE = b"what was signed"


def no_password() -> bytes:
    raise AssertionError("a key without a password does not ask for one")


def openssl(*words: str | Path, stdin: bytes = b"") -> bytes:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", *map(str, words)]
    return subprocess.run(command, input=stdin, check=True, capture_output=True, timeout=30).stdout


def sealed_by_hand(plain: bytes, password: bytes, label: str, **params: Any) -> bytes:
    """A cosign.key as its documentation describes it, made without our code."""
    costs = {"N": 1024, "r": 8, "p": 1} | params
    salt, nonce = bytes(range(32)), bytes(24)
    secret = hashlib.scrypt(password, salt=salt, n=1024, r=8, p=1, dklen=32)
    document = {
        "kdf": {"name": "scrypt", "params": costs, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(SecretBox(secret).encrypt(plain, nonce).ciphertext).decode(),
    }
    body = base64.encodebytes(json.dumps(document).encode()).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    return PrivateKey.generate()


@pytest.fixture(scope="module")
def der() -> bytes:
    return openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-outform", "DER")


def test_a_new_key_is_sealed_and_opens_with_its_password_alone(key: PrivateKey) -> None:
    pem = key.sealed(b"secret")
    assert pem.startswith(b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n")
    assert max(map(len, pem.splitlines())) <= 64
    opened = decode_private_key(pem, lambda: b"secret")
    assert opened.public.spki == key.public.spki
    with pytest.raises(InvalidKey, match="password does not open"):
        decode_private_key(pem, lambda: b"Secret")


@pytest.mark.parametrize("label", ["ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY"])
def test_keys_of_both_generations_of_cosign_are_read(label: str, der: bytes) -> None:
    opened = decode_private_key(sealed_by_hand(der, b"", label), lambda: b"")
    assert opened.public.spki == openssl("pkey", "-inform", "DER", "-pubout", "-outform", "DER", stdin=der)


@pytest.mark.parametrize(
    "costs",
    [
        {"N": 1 << 30},
        {"N": 1000},
        {"N": 0},
        {"N": -2},
        {"r": 0},
        {"r": 1 << 20},
        {"p": 1 << 20},
        {"N": 1 << 20, "r": 8},
    ],
    ids=str,
)
def test_costs_that_would_stop_the_host_are_refused_unpaid(costs: dict[str, int], der: bytes) -> None:
    pem = sealed_by_hand(der, b"", "ENCRYPTED SIGSTORE PRIVATE KEY", **costs)
    with pytest.raises(InvalidKey, match="scrypt with N="):
        decode_private_key(pem, lambda: b"")


@pytest.mark.parametrize("form", [["pkcs8", "-topk8", "-nocrypt"], ["ec"]], ids=["PKCS#8", "SEC 1"])
def test_plain_keys_of_openssl_are_read(form: list[str], der: bytes) -> None:
    key = decode_private_key(openssl(*form, "-inform", "DER", stdin=der), no_password)
    public = decode_public_key(openssl("pkey", "-inform", "DER", "-pubout", stdin=der))
    assert public.verifies(key.sign(MESSAGE), MESSAGE)
    assert public.fingerprint == key.public.fingerprint


def test_a_key_file_with_its_parameters_before_it_is_read() -> None:
    pem = openssl("ecparam", "-name", "prime256v1", "-genkey")
    assert b"EC PARAMETERS" in pem
    assert decode_private_key(pem, no_password).public.spki == openssl("pkey", "-pubout", "-outform", "DER", stdin=pem)


def test_openssl_verifies_what_we_sign(key: PrivateKey, tmp_path: Path) -> None:
    signature, public, message = tmp_path / "signature", tmp_path / "key.pub", tmp_path / "message"
    signature.write_bytes(key.sign(MESSAGE))
    public.write_bytes(key.public.pem)
    message.write_bytes(MESSAGE)
    assert b"Verified OK" in openssl("dgst", "-sha256", "-verify", public, "-signature", signature, message)


def test_we_verify_what_openssl_signs(der: bytes, tmp_path: Path) -> None:
    private, message = tmp_path / "key.der", tmp_path / "message"
    private.write_bytes(der)
    message.write_bytes(MESSAGE)
    signature = openssl("dgst", "-sha256", "-keyform", "DER", "-sign", private, message)
    public = decode_public_key(openssl("pkey", "-inform", "DER", "-pubout", stdin=der))
    assert public.verifies(signature, MESSAGE)
    assert not public.verifies(signature, MESSAGE + b".")
    assert not public.verifies(signature[:-1], MESSAGE)
    assert not public.verifies(b"", MESSAGE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], "curve secp384r1"),
        (["-algorithm", "ED25519"], "only ECDSA on P-256"),
        (["-algorithm", "RSA"], "only ECDSA on P-256"),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_other_kinds_of_keys_are_refused(arguments: list[str], words: str) -> None:
    private = openssl("genpkey", *arguments)
    with pytest.raises(InvalidKey, match=words):
        decode_private_key(private, no_password)
    with pytest.raises(InvalidKey, match=words):
        decode_public_key(openssl("pkey", "-pubout", stdin=private))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 PEM blocks"),
        (b"\xff\xfe", "not ASCII"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "'CERTIFICATE'"),
        (b"-----BEGIN PUBLIC KEY-----\n!!!\n-----END PUBLIC KEY-----\n", "base64"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be read"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n", "0 PEM blocks"),
        (b"a" * (MAX_KEY_FILE_BYTES + 1), "at most"),
    ],
)
def test_files_that_are_no_public_key(data: bytes, words: str) -> None:
    with pytest.raises(InvalidKey, match=words):
        decode_public_key(data)


def test_the_two_halves_are_not_taken_for_each_other(key: PrivateKey) -> None:
    with pytest.raises(InvalidKey, match="private key was given"):
        decode_public_key(key.sealed(b""))
    with pytest.raises(InvalidKey, match="public key cannot sign"):
        decode_private_key(key.public.pem, no_password)
    with pytest.raises(InvalidKey, match="2 PEM blocks"):
        decode_public_key(key.public.pem * 2)


def test_the_secret_is_not_shown(key: PrivateKey) -> None:
    assert "private_numbers" not in repr(key)
    assert str(key.key.private_numbers().private_value) not in repr(key)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileMissing):
        read_public_key(tmp_path / "no.pub")
    with pytest.raises(InvalidInput, match="not a regular file"):
        read_public_key(tmp_path)
    bad = tmp_path / "bad.key"
    bad.write_bytes(b"bad")
    with pytest.raises(InvalidKey, match=r"bad\.key: the file has 0 PEM blocks"):
        read_private_key(bad, no_password)


@settings(max_examples=50)
@given(st.binary(max_size=300), st.sampled_from(["PUBLIC KEY", "PRIVATE KEY", "ENCRYPTED SIGSTORE PRIVATE KEY"]))
def test_no_bytes_raise_anything_else(body: bytes, label: str) -> None:
    for inner in (body, base64.b64encode(body)):
        pem = b"-----BEGIN " + label.encode() + b"-----\n" + inner + b"\n-----END " + label.encode() + b"-----\n"
        for decode in (decode_public_key, lambda data: decode_private_key(data, lambda: b"")):
            with pytest.raises(InvalidKey):
                decode(pem)


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kdf", "cipher"]), inner),
        max_leaves=6,
    )
)
def test_no_json_in_a_sealed_key_raises_anything_else(document: Any) -> None:
    body = base64.encodebytes(json.dumps(document).encode()).decode()
    pem = f"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n{body}-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n"
    with pytest.raises(InvalidKey):
        decode_private_key(pem.encode(), lambda: b"")
