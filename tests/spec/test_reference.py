"""References: how a person names an artifact, and how a manifest names a blob."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.digest import Digest
from spec.errors import InvalidReference
from spec.reference import (
    BlobRef,
    DigestSource,
    PathSource,
    Reference,
    parse_blob_ref,
    parse_reference,
    parse_source,
)

DIGEST = Digest("sha256:" + "1a" * 32)

COMPONENTS = st.from_regex(r"[a-z0-9]{1,5}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
HOSTS = st.from_regex(
    r"(?:localhost|[a-z0-9]{1,5}(?:-[a-z0-9]{1,5})?\.[a-z]{2,4}|10\.0\.0\.[1-9]|\[::1\])(?::[1-9][0-9]{0,3})?",
    fullmatch=True,
) | st.from_regex(r"[a-z0-9]{1,5}:[0-9]{1,5}", fullmatch=True)
TAGS = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo", Reference(None, "demo", "latest", None)),
        ("demo:v1", Reference(None, "demo", "v1", None)),
        ("example/ubuntu-base:24.04", Reference(None, "example/ubuntu-base", "24.04", None)),
        ("host.example/a/b", Reference("host.example", "a/b", "latest", None)),
        ("localhost/a:1", Reference("localhost", "a", "1", None)),
        ("localhost:5000/a:1", Reference("localhost:5000", "a", "1", None)),
        ("[::1]:5000/a", Reference("[::1]:5000", "a", "latest", None)),
        (f"demo@{DIGEST}", Reference(None, "demo", None, DIGEST)),
        (f"h:1/demo:v1@{DIGEST}", Reference("h:1", "demo", "v1", DIGEST)),
    ],
)
def test_references(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Demo",
        "demo:",
        "demo:-x",
        "demo:" + "t" * 129,
        "demo@",
        "demo@sha256:12",
        f"demo@{DIGEST}@{DIGEST}",
        "a//b",
        "/a",
        "a/",
        "a_-b",
        "demo:v1:v2",
        "host.example/",
        "-host.example/a",
        "host:123456/a",
        "demo:v1\n",
        "a/" * 128 + "b",
        "",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)


@given(st.none() | HOSTS, st.lists(COMPONENTS, min_size=1, max_size=4), TAGS, st.none() | st.just(DIGEST))
def test_every_reference_is_read_back_as_it_was_written(
    host: str | None, path: list[str], tag: str, digest: Digest | None
) -> None:
    reference = Reference(host, "/".join(path), tag, digest)
    if host is None and (len(path) > 1 and ("." in path[0] or path[0] == "localhost")):
        return  # that is a host, by the rule

    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.local_name) == Reference(host, "/".join(path), tag, None)


@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidReference:
        return
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize("text", ["/a/b", "./demo", "../demo", ".", "..", "~/demo", "demo.tar", "demo/", "./demo:v1"])
def test_paths_by_form(text: str) -> None:
    assert parse_source(text) == PathSource(Path(text))


@pytest.mark.parametrize("text", [DIGEST, f"@{DIGEST}", "sha256:1a1a1a"])
def test_digests_of_the_store(text: str) -> None:
    assert parse_source(text) == DigestSource(text.removeprefix("@").removeprefix("sha256:"))


@pytest.mark.parametrize("text", ["", "a\0b", "sha256:", "sha256:1a1a1", "sha256:" + "g" * 64, "sha256:" + "1" * 65])
def test_what_is_no_source(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_source(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DIGEST, BlobRef(digest=DIGEST)),
        ("myregistry.com/ovms/ubuntu:24.04/kernel", BlobRef(registry="myregistry.com/ovms/ubuntu:24.04/kernel")),
        ("localhost:5000/a/b", BlobRef(registry="localhost:5000/a/b")),
        ("https://example.com", BlobRef(url="https://example.com")),
        (f"https://example.com/vmlinuz#{DIGEST}", BlobRef(url="https://example.com/vmlinuz", digest=DIGEST)),
        ("https://example.com:8443/boot/vmlinuz", BlobRef(url="https://example.com:8443/boot/vmlinuz")),
    ],
)
def test_blob_references(text: str, expected: BlobRef) -> None:
    assert parse_blob_ref(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kernel",
        "sha256:",
        DIGEST.upper(),
        "http://example.com/kernel",
        "file:///boot/vmlinuz",
        "https://",
        "https:///boot",
        "https://user@example.com/kernel",
        "https://example.com/a b",
        "https://example.com/kernel#",
        "https://example.com/kernel#top",
        f"https://example.com/kernel#{DIGEST}0",
        f"https://example.com/#x#{DIGEST}",
        "https://example.com/kernel\n",
        "/boot/vmlinuz",
        "../kernel",
        "host.example/",
    ],
)
def test_what_is_no_blob_reference(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_blob_ref(text)


@given(st.text(max_size=60))
def test_a_blob_reference_is_of_exactly_one_kind(text: str) -> None:
    try:
        found = parse_blob_ref(text)
    except InvalidReference:
        return
    assert [found.digest, found.registry, found.url].count(None) == 2
