"""Tars: what we write is read by tar, what tar writes is read by us, what is unsafe or damaged is refused."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.tar_reader import TarReader
from cache.tar_writer import TarWriter
from spec.errors import SizeMismatch, UnsafeArchive

FILES = {"a": b"x" * 700, "dir/b": b"", "c" * 150: bytes(512)}


def made(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    tar = TarWriter(sink)
    for name, data in files.items():
        tar.add(name, len(data), [data[:100], data[100:]])
    tar.finish()
    return sink.getvalue()


def made_by_tarfile(fill: Callable[[tarfile.TarFile], object], form: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        fill(tar)
    return sink.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> Callable[[tarfile.TarFile], None]:
    def fill(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type = kind
        for key, value in fields.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(bytes(info.size)))

    return fill


def read(data: bytes) -> dict[str, bytes]:
    tar = TarReader(io.BytesIO(data))
    found = {}
    for each in tar.members():
        found[each.name] = b"".join(tar.content())
        assert len(found[each.name]) == each.size_bytes
    return found


def test_what_we_write_is_read_by_us_and_by_tarfile() -> None:
    data = made(FILES)
    assert read(data) == FILES
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        assert [(each.mtime, each.uid, each.gid, each.mode) for each in members] == [(0, 0, 0, 0o644)] * 3
        assert {each.name: tar.extractfile(each).read() for each in members} == FILES  # type: ignore[union-attr]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_others_are_read(form: int) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        member("./", tarfile.DIRTYPE)(tar)
        member("./dir", tarfile.DIRTYPE)(tar)
        member("./dir/file", size=1000)(tar)
        if form != tarfile.USTAR_FORMAT:
            member("ü" * 120, size=3)(tar)

    names = {"dir/file": bytes(1000)} | ({"ü" * 120: bytes(3)} if form != tarfile.USTAR_FORMAT else {})
    assert read(made_by_tarfile(fill, form)) == names


def test_content_that_changes_its_size_is_told() -> None:
    tar = TarWriter(io.BytesIO())
    for content in ([b"abc"], [b"abcde"], [b"abc", b"de"]):
        with pytest.raises(SizeMismatch):
            tar.add("file", 4, content)


@pytest.mark.parametrize(
    "fill",
    [
        member("link", tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", tarfile.LNKTYPE, linkname="other"),
        member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("disk", tarfile.BLKTYPE),
        member("fifo", tarfile.FIFOTYPE),
        member("sparse", tarfile.GNUTYPE_SPARSE),
        member("contiguous", tarfile.CONTTYPE),
        member("/etc/passwd"),
        member("../passwd"),
        member("a/../../passwd"),
        member("..", tarfile.DIRTYPE),
        member("a", pax_headers={"GNU.sparse.major": "1"}),
        member("a", pax_headers={"path": "/etc/passwd"}),
        member("a", pax_headers={"path": "a\0b"}),
        member("a", pax_headers={"linkpath": "b"}),
        member("a", pax_headers={"size": "-1"}),
        member("a", pax_headers={"size": "1e3"}),
        member("a", pax_headers={"comment": "x" * 100_000}),
        lambda tar: [member("a")(tar), member("./a")(tar)],
    ],
)
def test_unsafe_members_are_refused(fill: Callable[[tarfile.TarFile], object]) -> None:
    with pytest.raises(UnsafeArchive):
        read(made_by_tarfile(fill))


def test_a_global_header_may_not_rename() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", pax_headers={"path": "elsewhere"}) as tar:
        member("a")(tar)
    with pytest.raises(UnsafeArchive, match="global"):
        read(sink.getvalue())


def test_damage_is_refused() -> None:
    data = made(FILES)
    for damaged in (
        b"",
        data[:-1024],
        data + b"x",
        data + bytes(512) + b"x" * 512,
        data + bytes(2 << 20),
        data[:600],
        b"\xff" + data[1:],
        b"x" * 2048,
    ):
        with pytest.raises(UnsafeArchive):
            read(damaged)


@settings(max_examples=200)
@given(
    edits=st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=12)), max_size=4),
    length=st.integers(0, 6000),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_damage_is_read_or_unsafe(edits: list[tuple[int, bytes]], length: int, form: int) -> None:
    data = bytearray(made_by_tarfile(member("ü" * 120, size=600), form))
    for offset, value in edits:
        data[offset : offset + len(value)] = value
    with contextlib.suppress(UnsafeArchive):
        read(bytes(data[:length]))
