"""qcow2 headers against qemu-img, and against bytes that nobody meant."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spec.errors import UnsafeDisk
from spec.qcow2 import HEAD_BYTES, build_overlay_header, is_qcow2, parse_header, rewrite_backing

GIB = 1 << 30
needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*args: str | Path) -> str:
    return subprocess.run(["qemu-img", *map(str, args)], check=True, capture_output=True, text=True).stdout


def head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def patched(image: bytes, offset: int, value: bytes) -> bytes:
    return image[:offset] + value + image[offset + len(value) :]


OVERLAY = build_overlay_header("../base/image", "raw", GIB)


@pytest.mark.real
@needs_qemu_img
@pytest.mark.parametrize("size", [512, 1 << 20, 512 << 20, GIB + 512, 2 << 40])
def test_qemu_accepts_and_writes_our_overlay(tmp_path: Path, size: int) -> None:
    base = tmp_path / "base"
    with base.open("wb") as file:
        file.truncate(size)
    overlay = tmp_path / "overlay"
    overlay.write_bytes(build_overlay_header("base", "raw", size))
    qemu_img("check", overlay)
    chain = json.loads(qemu_img("info", "--backing-chain", "--output=json", overlay))
    assert [each["format"] for each in chain] == ["qcow2", "raw"]
    assert chain[0]["virtual-size"] == size
    if shutil.which("qemu-io"):
        last = size - 512
        subprocess.run(["qemu-io", "-c", f"write -P 7 {last} 512", overlay], check=True, stdout=subprocess.DEVNULL)
        qemu_img("check", overlay)


@pytest.mark.real
@needs_qemu_img
@pytest.mark.parametrize(
    "options", ["compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "compression_type=zstd"]
)
def test_parse_and_rewrite_what_qemu_img_makes(tmp_path: Path, options: str) -> None:
    qemu_img("create", "-q", "-f", "raw", tmp_path / "base", "64M")
    diff = tmp_path / "diff"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", tmp_path / "base", "-F", "raw", diff)
    header = parse_header(head(diff))
    assert (header.virtual_size_bytes, header.backing_name, header.backing_format) == (
        64 << 20,
        str(tmp_path / "base"),
        "raw",
    )

    renamed = "sha256-" + "a" * 64
    (tmp_path / renamed).symlink_to("base")
    start = rewrite_backing(head(diff), renamed, "raw")
    with diff.open("r+b") as file:
        file.write(start)
    after = parse_header(head(diff))
    assert (after.backing_name, after.backing_format) == (renamed, "raw")
    assert str(tmp_path).encode() not in head(diff)
    qemu_img("check", diff)
    info = json.loads(qemu_img("info", "--output=json", diff))
    assert info["full-backing-filename"] == str(tmp_path / renamed)


def test_overlay_header_parses() -> None:
    header = parse_header(OVERLAY[:HEAD_BYTES])
    assert header.version == 3
    assert (header.virtual_size_bytes, header.backing_name, header.backing_format) == (GIB, "../base/image", "raw")
    assert not header.dirty
    assert is_qcow2(OVERLAY)


def test_a_longer_name_then_a_shorter_one_leaves_no_trace() -> None:
    secret = "/srv/private/" + "x" * 900
    first = patched(OVERLAY, 0, rewrite_backing(OVERLAY[:HEAD_BYTES], secret, "qcow2"))
    second = patched(first, 0, rewrite_backing(first[:HEAD_BYTES], "short", "raw"))
    assert b"private" not in second
    assert b"xxx" not in second
    assert parse_header(second[:HEAD_BYTES]) == parse_header(build_overlay_header("short", "raw", GIB)[:HEAD_BYTES])


@pytest.mark.parametrize(
    ("offset", "value", "complaint"),
    [
        (0, b"QED\0", "magic"),
        (4, b"\0\0\0\4", "version 4"),
        (20, b"\0\0\0\10", "clusters"),
        (20, b"\0\0\0\x3f", "clusters"),
        (24, bytes(8), "virtual size"),
        (24, b"\x7f" * 8, "virtual size"),
        (32, b"\0\0\0\2", "encrypted"),
        (36, b"\xff" * 4, "L1 table"),
        (36, bytes(4), "L1 table"),
        (40, b"\0" * 7 + b"\1", "L1 table"),
        (48, b"\xff" * 8, "refcount table"),
        (56, bytes(4), "refcount table"),
        (56, b"\xff" * 4, "refcount table"),
        (60, b"\0\0\0\1", "internal snapshots"),
        (72, (1 << 1).to_bytes(8, "big"), "corrupt"),
        (72, (1 << 2).to_bytes(8, "big"), "external file"),
        (72, (1 << 3).to_bytes(8, "big"), "compression"),
        (72, (1 << 4).to_bytes(8, "big"), "extended L2"),
        (72, (1 << 40).to_bytes(8, "big"), "unknown incompatible"),
        (96, b"\0\0\0\7", "refcounts"),
        (100, b"\0\0\0\x67", "header length"),
        (100, b"\x7f\0\0\0", "header length"),
        (8, (1 << 20).to_bytes(8, "big"), "first cluster"),
        (8, (8).to_bytes(8, "big"), "first cluster"),
        (16, (1024).to_bytes(4, "big"), "first cluster"),
        (16, bytes(4), "first cluster"),
        (112, (0x44415441).to_bytes(4, "big"), "external data file"),
        (116, b"\0\1\0\0", "leaves the header"),
    ],
)  # fmt: skip
def test_refused_headers(offset: int, value: bytes, complaint: str) -> None:
    with pytest.raises(UnsafeDisk, match=complaint):
        parse_header(patched(OVERLAY, offset, value)[:HEAD_BYTES])


def test_dirty_is_told_not_refused() -> None:
    assert parse_header(patched(OVERLAY, 72, (1).to_bytes(8, "big"))[:HEAD_BYTES]).dirty


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "n" * 1024, "\udc80"])
def test_names_that_no_header_can_hold(name: str) -> None:
    with pytest.raises(UnsafeDisk, match="backing file name"):
        build_overlay_header(name, "qcow2", GIB)


@pytest.mark.parametrize("size", [0, -512, 1000, (16 << 40) + 512])
def test_sizes_that_no_disk_has(size: int) -> None:
    with pytest.raises(UnsafeDisk, match="sectors"):
        build_overlay_header("b", "raw", size)


def test_renaming_needs_a_backing_file() -> None:
    base = patched(OVERLAY, 8, bytes(12))
    assert parse_header(base[:HEAD_BYTES]).backing_name is None
    with pytest.raises(UnsafeDisk, match="no backing file"):
        rewrite_backing(base[:HEAD_BYTES], "x", "raw")


@given(st.binary(max_size=600))
def test_any_bytes_parse_or_are_unsafe(data: bytes) -> None:
    for head_bytes in (data, b"QFI\xfb\0\0\0\3" + data):
        with contextlib.suppress(UnsafeDisk):
            parse_header(head_bytes)


@settings(max_examples=300)
@given(
    edits=st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    length=st.integers(0, 4096),
    name=st.text(max_size=80),
)
def test_damaged_headers_parse_or_are_unsafe_and_rewrite_to_what_was_asked(
    edits: list[tuple[int, bytes]], length: int, name: str
) -> None:
    data = OVERLAY[: max(length, 104)]
    for offset, value in edits:
        data = patched(data, offset, value)
    try:
        rewritten = rewrite_backing(data, name, "qcow2")
    except UnsafeDisk:
        return
    after = parse_header(patched(data, 0, rewritten))
    assert (after.backing_name, after.backing_format) == (name, "qcow2")
