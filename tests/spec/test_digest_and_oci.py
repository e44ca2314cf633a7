"""Digests, and the OCI documents that are read from disk and network."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec import media_types, oci
from spec.digest import digest_from_hash, digest_of, hex_of, is_digest, parse_digest
from spec.errors import InvalidDigest, InvalidManifest

DIGEST = "sha256:" + "00" * 32


@given(st.binary(max_size=64))
def test_a_digest_is_the_sha256_of_the_bytes(data: bytes) -> None:
    digest = digest_of(data)

    assert digest == "sha256:" + hashlib.sha256(data).hexdigest() == digest_from_hash(hashlib.sha256(data))
    assert parse_digest(digest) == digest
    assert len(hex_of(digest)) == 64


@pytest.mark.parametrize(
    "text", ["", "sha256:", DIGEST[:-1], DIGEST + "0", DIGEST + "\n", DIGEST.upper(), "sha512:" + "0" * 128, "0" * 64]
)
def test_what_is_no_digest(text: str) -> None:
    assert not is_digest(text)
    with pytest.raises(InvalidDigest):
        parse_digest(text)


def test_the_empty_descriptor_is_that_of_the_image_spec() -> None:
    assert oci.EMPTY_DESCRIPTOR.digest == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert oci.EMPTY_DESCRIPTOR.size == 2


def manifest_document(**changes: Any) -> dict[str, Any]:
    empty = {"mediaType": media_types.OCI_EMPTY, "digest": oci.EMPTY_DESCRIPTOR.digest, "size": 2}
    layer = {"mediaType": media_types.KERNEL, "digest": DIGEST, "size": 5, "annotations": {"a": "b"}}
    return {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "artifactType": media_types.MANIFEST,
        "config": empty,
        "layers": [layer],
    } | changes


def test_an_image_manifest_is_read_and_written() -> None:
    data = json.dumps(manifest_document(subject={"mediaType": "x/y", "digest": DIGEST, "size": 9})).encode()

    manifest = oci.decode(data, oci.ImageManifest, "the manifest")

    assert manifest.artifact_type == media_types.MANIFEST
    assert manifest.config == oci.EMPTY_DESCRIPTOR
    assert manifest.layers[0].annotations == {"a": "b"}
    assert manifest.subject is not None
    assert manifest.subject.content_digest == DIGEST
    assert oci.decode(oci.encode(manifest), oci.ImageManifest, "the manifest") == manifest


def test_what_other_tools_add_is_ignored() -> None:
    data = json.dumps(manifest_document(urls=["x"], data="e30=")).encode()

    assert oci.decode(data, oci.ImageManifest, "the manifest").layers[0].size == 5


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"config": {"mediaType": "x", "digest": "sha256:0", "size": 1}}, "$.config"),
        ({"layers": [{"mediaType": "x", "digest": DIGEST, "size": -1}]}, "$.layers[0]"),
        ({"layers": [{"mediaType": "x", "digest": DIGEST}]}, "$.layers[0]"),
        ({"layers": None}, "$.layers"),
        ({"annotations": {"a": 1}}, "$.annotations[...]"),
    ],
)
def test_an_error_names_the_document_and_the_place(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidManifest, match=r"^the manifest: ") as caught:
        oci.decode(json.dumps(manifest_document(**changes)).encode(), oci.ImageManifest, "the manifest")

    assert caught.value.fields["path"] == path


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b" " * (oci.MAX_MANIFEST_BYTES + 1)])
def test_what_is_no_document(data: bytes) -> None:
    with pytest.raises(InvalidManifest):
        oci.decode(data, oci.ImageIndex, "index.json")


@given(st.recursive(st.none() | st.integers() | st.text(max_size=4), st.lists, max_leaves=4))
def test_any_json_gives_a_document_or_our_error(value: Any) -> None:
    with pytest.raises(InvalidManifest):
        oci.decode(json.dumps(value).encode(), oci.ImageIndex, "index.json")
