"""provenance.json: signatures go out with a layout and come back, and only with what they are about."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.file_layout import export_artifact, import_artifact
from cache.pack import pack
from cache.store import Store
from cache.trust.bundle import make_bundle
from cache.trust.keys import PrivateKey
from cache.trust.local_signatures import keep_signatures, local_signatures
from cache.trust.provenance import decode_provenance, encode_provenance
from cache.trust.signature_manifest import MAX_SIGNATURES, merged, sign_v2, sign_v3
from cache.trust.verification import NamedKey, verify
from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import InvalidSignature
from spec.oci import Descriptor
from spec.reference import parse_reference
from tests.cache.conftest import Packing
from tests.cache.trust.test_signatures import JSON

KEY, OTHER_KEY = PrivateKey.generate(), PrivateKey.generate()
SUBJECT = Descriptor(media_types.OCI_MANIFEST, digest_of(b"an artifact"), 11)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    other = Store(tmp_path / "other")
    other.create()
    yield other
    other.close()


@pytest.fixture
def signed(store: Store, packing: Packing) -> Digest:
    digest = pack(store, packing("demo:base"))
    for key in (KEY, OTHER_KEY):
        keep_signatures(store, digest, "demo", sign_v2(digest, "demo", key))
        keep_signatures(store, digest, "demo", sign_v3(store.artifact(digest).descriptor, key))
    return digest


def formats(store: Store, digest: Digest, key: PrivateKey) -> list[str]:
    found = verify(local_signatures(store, digest), digest, [NamedKey("key", key.public)])
    return sorted(each.format for each in found.matches)


@pytest.mark.parametrize("name", ["layout", "layout.tar"])
def test_signatures_survive_export_and_import(
    store: Store, other: Store, signed: Digest, tmp_path: Path, name: str
) -> None:
    export_artifact(store, signed, tmp_path / name)
    assert import_artifact(other, tmp_path / name, None) == signed
    assert formats(other, signed, KEY) == formats(other, signed, OTHER_KEY) == ["v2", "v3"]
    before, after = (sorted(each.digest for each in local_signatures(each, signed)) for each in (store, other))
    assert before == after
    export_artifact(other, signed, tmp_path / f"again-{name}")
    assert not list(other.provenance_dir.iterdir())


def test_the_document_holds_the_bundles_as_they_are(store: Store, signed: Digest, tmp_path: Path) -> None:
    export_artifact(store, signed, tmp_path / "layout")
    document = json.loads((tmp_path / "layout" / "metadata" / "provenance.json").read_bytes())
    assert document["subject"]["digest"] == signed
    assert len(document["bundles"]) == len(document["simpleSignatures"]) == 2
    assert document["bundles"][0]["bundle"]["mediaType"] == media_types.SIGSTORE_BUNDLE


def test_an_unsigned_artifact_has_no_provenance(store: Store, packing: Packing, tmp_path: Path) -> None:
    export_artifact(store, pack(store, packing("demo:base")), tmp_path / "layout")
    assert not (tmp_path / "layout" / "metadata" / "provenance.json").exists()


def test_a_bundle_alone_is_understood(store: Store, other: Store, signed: Digest, tmp_path: Path) -> None:
    export_artifact(store, signed, tmp_path / "layout")
    (tmp_path / "layout" / "metadata" / "provenance.json").write_bytes(make_bundle(signed, KEY))
    import_artifact(other, tmp_path / "layout", parse_reference("mine:1"))
    assert formats(other, signed, KEY) == ["v3"]


def test_the_provenance_of_another_artifact_is_refused(
    store: Store, other: Store, signed: Digest, packing: Packing, tmp_path: Path
) -> None:
    second = pack(store, packing("demo:second", args="quiet"))
    export_artifact(store, signed, tmp_path / "first")
    export_artifact(store, second, tmp_path / "second")
    (tmp_path / "second" / "metadata").mkdir(exist_ok=True)
    target = tmp_path / "second" / "metadata" / "provenance.json"
    document = json.loads((tmp_path / "first" / "metadata" / "provenance.json").read_bytes())
    half_forged = {**document, "subject": {**document["subject"], "digest": second}}
    for forged in (document, half_forged):
        target.write_text(json.dumps(forged))
        with pytest.raises(InvalidSignature, match=f"not {second}"):
            import_artifact(other, tmp_path / "second", None)
        assert other.list() == []
    target.write_bytes(make_bundle(signed, KEY))
    with pytest.raises(InvalidSignature, match=f"not {second}"):
        import_artifact(other, tmp_path / "second", None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subject": {}}, "cannot be read"),
        ({"bundles": [{}]}, "cannot be read"),
        ({"bundles": [{"bundle": {"mediaType": "x"}}]}, "a signature in provenance.json: not a Sigstore bundle"),
        ({"simpleSignatures": [{"payload": "e30=", "signature": ""}]}, "no simple signing document"),
        ({"simpleSignatures": [{"payload": "!", "signature": ""}]}, "cannot be read"),
    ],
)
def test_damaged_documents_are_refused(change: dict[str, Any], words: str) -> None:
    document = json.loads(encode_provenance(SUBJECT, [sign_v3(SUBJECT, KEY)])) | change
    with pytest.raises(InvalidSignature, match=words):
        decode_provenance(json.dumps(document).encode(), SUBJECT)


def test_truncated_documents_are_refused() -> None:
    data = encode_provenance(SUBJECT, [sign_v3(SUBJECT, KEY), sign_v2(SUBJECT.content_digest, "demo", KEY)])
    for length in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(InvalidSignature, match="no JSON"):
            decode_provenance(data[:length], SUBJECT)


def test_the_number_of_signatures_is_bounded() -> None:
    document = json.loads(encode_provenance(SUBJECT, [sign_v3(SUBJECT, KEY)]))
    document["bundles"] *= MAX_SIGNATURES + 1
    with pytest.raises(InvalidSignature, match="more than"):
        decode_provenance(json.dumps(document).encode(), SUBJECT)


def test_what_is_written_can_be_read_however_many_there_are() -> None:
    many = sign_v2(SUBJECT.content_digest, "demo", KEY)
    for _ in range(8):
        many = merged(many, sign_v2(SUBJECT.content_digest, "x" * 60_000, KEY))
    data = encode_provenance(SUBJECT, [many] * 8)
    assert len(data) < 4 << 20
    assert decode_provenance(data, SUBJECT)


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for each in (data, b'{"mediaType":"application/vnd.ovms.provenance.v1+json","bundles":[%b]}' % data):
        with contextlib.suppress(InvalidSignature):
            assert decode_provenance(each, SUBJECT) in (None, [])
