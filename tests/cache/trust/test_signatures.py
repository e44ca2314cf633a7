"""Both formats of Cosign: what others made is read, what we make others read, and nothing forged passes."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.trust.bundle import MAX_BUNDLE_BYTES, check_bundle, make_bundle
from cache.trust.claim import Claim
from cache.trust.dsse import pre_authentication_encoding
from cache.trust.keys import PrivateKey, PublicKey, decode_public_key
from cache.trust.signature_manifest import (
    MAX_SIGNATURES,
    SIGNATURE,
    SignatureManifest,
    claims,
    merged,
    sign_v2,
    sign_v3,
    signature_tag,
)
from cache.trust.simple_signing import MAX_PAYLOAD_BYTES, check_simple, simple_payload
from spec import media_types
from spec.digest import Digest, digest_of, hex_of
from spec.errors import InvalidSignature
from spec.oci import Descriptor

VECTORS = Path(__file__).with_name("vectors")
SUBJECT = digest_of(b"an artifact")
OTHER = digest_of(b"another artifact")
ARTIFACT = Descriptor(media_types.OCI_MANIFEST, SUBJECT, 11)
KEY = PrivateKey.generate()
STRANGER = PrivateKey.generate()


def verdict(signatures: SignatureManifest, key: PublicKey = KEY.public, subject: Digest = SUBJECT) -> list[str]:
    """For each signature ``ok``, or why not."""
    found = []
    for claim in claims(signatures, subject):
        try:
            if isinstance(claim, InvalidSignature):
                raise claim
            found.append("ok" if claim.check([("key", key)]) == "key" else "?")
        except InvalidSignature as error:
            found.append(error.detail)
    return found


def rebuilt(signatures: SignatureManifest, change: Callable[[dict[str, Any]], None]) -> SignatureManifest:
    """The manifest with a changed document; its blobs stay."""
    document = json.loads(signatures.data)
    change(document)
    return SignatureManifest(json.dumps(document).encode(), signatures.blobs)


def with_blob(signatures: SignatureManifest, data: bytes) -> SignatureManifest:
    """The manifest with another first layer, its digest and size put right: as a forger would."""
    digest = digest_of(data)
    changed = rebuilt(signatures, lambda document: document["layers"][0].update(digest=digest, size=len(data)))
    return replace(changed, blobs={**signatures.blobs, digest: data})


def layer_of(signatures: SignatureManifest) -> bytes:
    return signatures.blobs[json.loads(signatures.data)["layers"][0]["digest"]]


# --- others' -------------------------------------------------------------------------------------------------------


def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def test_what_others_made_is_read() -> None:
    key = decode_public_key(vector("key.pub"))
    for claim in (
        check_bundle(vector("signature.bundle.json"), SUBJECT),
        check_simple(vector("payload.json"), vector("payload.sig").decode(), SUBJECT),
    ):
        assert claim.check([("stranger", STRANGER.public), ("theirs", key)]) == "theirs"


def test_an_attestation_by_the_right_key_is_no_signature() -> None:
    with pytest.raises(InvalidSignature, match=r"an attestation of the type 'https://spdx\.dev/Document', not a sig"):
        check_bundle(vector("attestation.bundle.json"), SUBJECT)


@pytest.mark.parametrize("format_", ["v2", "v3"])
def test_openssl_verifies_the_bytes_that_we_sign(format_: str, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = sign_v2(SUBJECT, "host/app", KEY) if format_ == "v2" else sign_v3(ARTIFACT, KEY)
    layer = layer_of(made)
    if format_ == "v2":
        message, signature = layer, json.loads(made.data)["layers"][0]["annotations"][SIGNATURE]
    else:
        envelope = json.loads(layer)["dsseEnvelope"]
        payload, signature = base64.b64decode(envelope["payload"]), envelope["signatures"][0]["sig"]
        kind = envelope["payloadType"]
        message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    for name, data in (("m", message), ("s", base64.b64decode(signature)), ("k", KEY.public.pem)):
        (tmp_path / name).write_bytes(data)
    command = ["openssl", "dgst", "-sha256", "-verify", "k", "-signature", "s", "m"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=30)
    assert done.stdout == b"Verified OK\n"


def test_the_documents_are_those_of_cosign() -> None:
    assert signature_tag(SUBJECT) == f"sha256-{hex_of(SUBJECT)}.sig"
    v2 = sign_v2(SUBJECT, "host/app", KEY)
    assert layer_of(v2) == (
        b'{"critical":{"identity":{"docker-reference":"host/app"},"image":{"docker-manifest-digest":"%b"},'
        b'"type":"cosign container image signature"},"optional":null}' % SUBJECT.encode()
    )
    v3 = json.loads(sign_v3(ARTIFACT, KEY).data)
    assert v3["artifactType"] == v3["layers"][0]["mediaType"] == media_types.SIGSTORE_BUNDLE
    assert v3["subject"]["digest"] == SUBJECT
    assert v3["annotations"]["dev.sigstore.bundle.predicateType"] == "https://sigstore.dev/cosign/sign/v1"
    bundle = json.loads(make_bundle(SUBJECT, KEY))
    assert bundle["verificationMaterial"] == {"publicKey": {"hint": KEY.public.hint}}
    assert json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"])) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": hex_of(SUBJECT)}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }


def test_the_encoding_before_signing_is_that_of_the_dsse_document() -> None:
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


# --- ours, true and forged -----------------------------------------------------------------------------------------

V2 = sign_v2(SUBJECT, "host/app", KEY)
V3 = sign_v3(ARTIFACT, KEY)
BOTH = pytest.mark.parametrize("made", [V2, V3], ids=["v2", "v3"])


@BOTH
def test_a_signature_verifies_with_its_key_for_its_artifact(made: SignatureManifest) -> None:
    assert verdict(made) == ["ok"]
    assert verdict(made, STRANGER.public) == ["it was not made by the key, or was changed since"]
    (reason,) = verdict(made, subject=OTHER)
    assert "not sha256:" in reason


@BOTH
def test_a_forger_changes_the_digest_in_the_payload(made: SignatureManifest) -> None:
    layer = layer_of(made)
    if made is V2:
        forged = layer.replace(SUBJECT.encode(), OTHER.encode())
    else:
        bundle = json.loads(layer)
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
        changed = payload.replace(hex_of(SUBJECT).encode(), hex_of(OTHER).encode())
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
        forged = json.dumps(bundle).encode()
        made = rebuilt(made, lambda document: document["subject"].update(digest=OTHER))
    assert verdict(with_blob(made, forged), subject=OTHER) == ["it was not made by the key, or was changed since"]


@BOTH
def test_every_byte_of_the_signed_blob_counts(made: SignatureManifest) -> None:
    layer = layer_of(made)
    for at in range(0, len(layer), 7):
        forged = bytearray(layer)
        forged[at] ^= 1
        reasons = verdict(with_blob(made, bytes(forged)))
        # Only what is not signed may change: the hint, spaces, names of fields nobody reads.
        if reasons == ["ok"]:
            assert made is V3
            assert b"hint" in layer[max(0, at - 60) : at + 8]


@BOTH
def test_a_truncated_blob(made: SignatureManifest) -> None:
    layer = layer_of(made)
    for length in (0, 1, len(layer) // 2, len(layer) - 1):
        assert verdict(with_blob(made, layer[:length])) != ["ok"]
    digest = json.loads(made.data)["layers"][0]["digest"]
    (reason,) = verdict(replace(made, blobs={digest: layer[:-1]}))
    assert reason.startswith("its blob is not sha256:")
    assert verdict(replace(made, blobs={})) == [f"its blob {digest} is missing"]


def test_the_signature_of_one_payload_beside_another() -> None:
    other = sign_v2(OTHER, "host/app", KEY)
    swapped = rebuilt(
        V2,
        lambda document: document["layers"][0].update(annotations=json.loads(other.data)["layers"][0]["annotations"]),
    )
    assert verdict(swapped) == ["it was not made by the key, or was changed since"]


@pytest.mark.parametrize("annotation", ["", "!!!", "AAAA", "MEUC", "A" * 5000, "\u00e9"])
def test_garbage_instead_of_a_signature(annotation: str) -> None:
    changed = rebuilt(V2, lambda document: document["layers"][0].update(annotations={SIGNATURE: annotation}))
    assert verdict(changed) != ["ok"]
    assert len(verdict(changed)) == 1


def test_a_payload_without_its_annotation() -> None:
    changed = rebuilt(V2, lambda document: document["layers"][0].pop("annotations"))
    assert "without the annotation" in verdict(changed)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "atomic container signature"}, "of the type 'atomic container signature'"),
        ({"type": 3}, "no simple signing document"),
        ({"image": {}}, "no simple signing document"),
        ({"image": {"docker-manifest-digest": "sha256:no"}}, "it signs 'sha256:no'"),
    ],
)
def test_payloads_of_another_kind_though_signed(change: dict[str, Any], words: str) -> None:
    document = json.loads(simple_payload(SUBJECT, "host/app"))
    document["critical"].update(change)
    payload = json.dumps(document).encode()
    signature = base64.b64encode(KEY.sign(payload)).decode()
    with pytest.raises(InvalidSignature, match=words):
        check_simple(payload, signature, SUBJECT)


def signed_statement(**changes: Any) -> bytes:
    """A bundle, truly signed, around a statement with some fields changed."""
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": hex_of(SUBJECT)}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    } | changes
    return signed_payload(json.dumps(statement).encode())


def signed_payload(payload: bytes, kind: str = media_types.IN_TOTO) -> bytes:
    signature = KEY.sign(pre_authentication_encoding(kind, payload))
    bundle = {
        "mediaType": media_types.SIGSTORE_BUNDLE,
        "verificationMaterial": {"publicKey": {}},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": kind,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        },
    }
    return json.dumps(bundle).encode()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"predicateType": "https://slsa.dev/provenance/v1"}, "attestation of the type"),
        ({"predicateType": ""}, "attestation of the type ''"),
        ({"predicateType": None}, "no in-toto statement"),
        ({"_type": "https://in-toto.io/Statement/v9"}, "statement is of the type"),
        ({"subject": []}, "it signs nothing"),
        ({"subject": [{"digest": {"sha512": hex_of(SUBJECT)}}]}, r"it signs sha256:\?, not"),
        ({"subject": [{"digest": {"sha256": hex_of(OTHER)}}]}, "it signs sha256:.*, not sha256:"),
        ({"subject": [{"digest": {"sha256": hex_of(SUBJECT)}}] * 65}, "65 subjects"),
        ({"subject": {}}, "no in-toto statement"),
    ],
)
def test_statements_of_another_kind_though_signed(changes: dict[str, Any], words: str) -> None:
    assert check_bundle(signed_statement(), SUBJECT).check([("key", KEY.public)]) == "key"
    with pytest.raises(InvalidSignature, match=words):
        check_bundle(signed_statement(**changes), SUBJECT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1"}, "not supported"),
        ({"verificationMaterial": {"certificate": {"rawBytes": "AAAA"}}}, "keyless"),
        ({"dsseEnvelope": None}, "no DSSE envelope"),
        ({"messageSignature": {}, "dsseEnvelope": None}, "no DSSE envelope"),
        ({"dsseEnvelope": {"payload": "AAAA", "payloadType": "text/plain", "signatures": []}}, "holds 'text/plain'"),
        ({"dsseEnvelope": {"payload": "!", "payloadType": "a", "signatures": []}}, "not a Sigstore bundle"),
    ],
)
def test_bundles_of_another_kind(change: dict[str, Any], words: str) -> None:
    document = json.loads(make_bundle(SUBJECT, KEY)) | change
    with pytest.raises(InvalidSignature, match=words):
        check_bundle(json.dumps(document).encode(), SUBJECT)


def test_the_number_of_signatures_in_an_envelope_is_one() -> None:
    document = json.loads(make_bundle(SUBJECT, STRANGER))
    ours = json.loads(make_bundle(SUBJECT, KEY))["dsseEnvelope"]["signatures"]
    none: list[Any] = []
    for signatures in (none, document["dsseEnvelope"]["signatures"] + ours):
        document["dsseEnvelope"]["signatures"] = signatures
        with pytest.raises(InvalidSignature, match="a bundle has one"):
            check_bundle(json.dumps(document).encode(), SUBJECT)


def test_a_layer_of_another_type_is_no_signature() -> None:
    kind = "application/vnd.dsse.envelope.v1+json"
    changed = rebuilt(V2, lambda document: document["layers"][0].update(mediaType=kind))
    assert verdict(changed) == [f"a layer of the type {kind!r} is no signature"]


def test_a_bundle_counts_only_where_its_manifest_says_that_it_belongs() -> None:
    for change in ({"subject": None}, {"subject": msgspec.to_builtins(ARTIFACT) | {"digest": OTHER}}):
        (reason,) = verdict(rebuilt(V3, lambda document, change=change: document.update(change)))  # type: ignore[misc]
        assert "a manifest whose subject is not" in reason


# --- bombs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [100, 1000, 60_000])
def test_deep_nesting(depth: int) -> None:
    deep = b'{"critical":' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(InvalidSignature):
        check_simple(deep, "AAAA", SUBJECT)
    deep = b'{"x":' + b'{"a":' * (depth // 5) + b"1" + b"}" * (depth // 5) + b"}"
    for data in (deep, signed_payload(deep)):
        with pytest.raises(InvalidSignature):
            check_bundle(data, SUBJECT)


def test_sizes_are_bounded() -> None:
    with pytest.raises(InvalidSignature, match="more than"):
        check_simple(b" " * MAX_PAYLOAD_BYTES + simple_payload(SUBJECT, "a"), "AAAA", SUBJECT)
    with pytest.raises(InvalidSignature, match="more than"):
        check_bundle(b" " * MAX_BUNDLE_BYTES + make_bundle(SUBJECT, KEY), SUBJECT)
    many = rebuilt(V2, lambda document: document.update(layers=document["layers"] * (MAX_SIGNATURES + 1)))
    assert "layers, more than" in verdict(many)[0]
    huge = rebuilt(V2, lambda document: document["layers"][0].update(size=1 << 40))
    assert "bytes, more than" in verdict(huge)[0]


# --- several -------------------------------------------------------------------------------------------------------


def test_signatures_at_one_tag_are_brought_together() -> None:
    second = sign_v2(SUBJECT, "host/app", STRANGER)
    both = merged(V2, second)
    assert verdict(both) == ["ok", "it was not made by the key, or was changed since"]
    assert verdict(both, STRANGER.public)[1] == "ok"
    assert merged(both, V2) is both
    assert merged(both, second) is both
    for _ in range(MAX_SIGNATURES - 2):
        both = merged(both, sign_v2(SUBJECT, "host/app", KEY))
    with pytest.raises(InvalidSignature, match="more than"):
        merged(both, sign_v2(SUBJECT, "host/app", KEY))


def test_one_bad_signature_does_not_hide_a_good_one() -> None:
    bad = sign_v2(OTHER, "host/app", KEY)
    assert verdict(merged(bad, V2))[1] == "ok"


# --- whatever the bytes --------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=8) | st.sampled_from([SUBJECT, hex_of(SUBJECT)]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["critical", "image", "type", "identity", "subject", "digest", "sha256", "dsseEnvelope", "payload",
                 "mediaType", "layers", "config", "size", "annotations", "verificationMaterial", "publicKey"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(InvalidSignature):
        check_simple(data, "AAAA", SUBJECT)
    for bundle in (data, signed_payload(data)):
        with pytest.raises(InvalidSignature):
            check_bundle(bundle, SUBJECT)
    assert all(isinstance(each, InvalidSignature) for each in claims(SignatureManifest(data, {}), SUBJECT))


@given(st.data())
def test_no_change_of_a_bundle_or_manifest_makes_a_stranger_trusted(data: st.DataObject) -> None:
    made = data.draw(st.sampled_from([V2, V3]))
    document = json.loads(made.data)
    layer = bytearray(layer_of(made))
    at = data.draw(st.integers(0, len(layer) - 1))
    layer[at] = data.draw(st.integers(0, 255))
    document["layers"][0].update(digest=digest_of(layer), size=len(layer))
    document.update(data.draw(st.dictionaries(st.sampled_from(["annotations", "artifactType", "subject"]), JSON)))
    forged = SignatureManifest(json.dumps(document).encode(), {digest_of(layer): bytes(layer)})
    for each in claims(forged, OTHER):
        if isinstance(each, Claim):
            with pytest.raises(InvalidSignature):
                each.check([("key", KEY.public)])
    assert verdict(forged, STRANGER.public) != ["ok"]
