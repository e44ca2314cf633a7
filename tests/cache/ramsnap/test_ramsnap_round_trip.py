from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.ramsnap import Changes, EncodedRamsnap, RamsnapDecoder, decode, encode, read_header, read_index
from cache.ramsnap.encoder import without_zero_pages
from spec.digest import digest_of
from spec.errors import FileMissing, InvalidInput, InvalidSize
from spec.ramsnap import PAGES_PER_FRAME, page_runs
from spec.sizes import PAGE_BYTES
from tests.cache.ramsnap.snapshots import CREATED, Snapshot, compatibility, page_of, same_content

VECTORS = Path(__file__).parents[3] / "spec" / "vectors"
_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@st.composite
def sparse_ram(draw: st.DrawFn) -> tuple[int, dict[int, bytes]]:
    """A size in pages and some pages: noise, text, and some that are written, but zero."""
    pages = draw(st.integers(1, 3 * PAGES_PER_FRAME))
    noise = random.Random(draw(st.integers(0, 1 << 32)))
    content: dict[int, bytes] = {}
    for start, length, kind in draw(
        st.lists(
            st.tuples(st.integers(0, pages - 1), st.integers(1, 40), st.sampled_from(["noise", "text", "zero"])),
            max_size=12,
        )
    ):
        for number in range(start, min(start + length, pages)):
            content[number] = {
                "noise": noise.randbytes(PAGE_BYTES),
                "text": page_of(number),
                "zero": bytes(PAGE_BYTES),
            }[kind]
    return pages, content


@given(ram=sparse_ram(), state=st.dictionaries(_names, st.binary(max_size=5000), max_size=4), threads=st.integers(1, 3))
def test_what_was_encoded_is_decoded(ram: tuple[int, dict[int, bytes]], state: dict[str, bytes], threads: int) -> None:
    pages, content = ram
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        snapshot = Snapshot.write(directory / "snapshot", content, pages * PAGE_BYTES, state)
        encoded = snapshot.encode(directory / "blob", threads=threads)
        assert encoded.digest == digest_of((directory / "blob").read_bytes())
        assert encoded.size_bytes == (directory / "blob").stat().st_size
        nonzero = [page for page in content.values() if any(page)]
        assert encoded.stored_bytes == len(nonzero) * PAGE_BYTES
        assert read_index(directory / "blob").payload_bytes == encoded.stored_bytes + sum(map(len, state.values()))
        header = decode(directory / "blob", encoded.digest, directory / "decoded", threads=threads)
        assert header == read_header(directory / "blob")
        assert same_content(directory / "snapshot", directory / "decoded")


@given(st.integers(1, PAGES_PER_FRAME), st.randoms(use_true_random=False))
def test_zero_pages_are_found_and_runs_put_back(pages: int, rng: random.Random) -> None:
    present = {number for number in range(pages) if rng.random() < 0.5}
    content = b"".join(page_of(number) if number in present else bytes(PAGE_BYTES) for number in range(pages))
    payload, bitmap = without_zero_pages(content)
    assert {page + i for page, count in page_runs(bitmap) for i in range(count)} == present
    assert payload == b"".join(page_of(number) for number in sorted(present))


def test_a_page_that_differs_in_its_last_byte_only_is_kept() -> None:
    page = bytes(PAGE_BYTES - 1) + b"\1"
    assert without_zero_pages(bytes(PAGE_BYTES) + page)[0] == page


def test_holes_are_neither_read_nor_written(snapshot: Snapshot, tmp_path: Path, tmpfs_dir: Path) -> None:
    ram = tmpfs_dir / "ram"
    with ram.open("wb") as stream:
        stream.truncate(1 << 36)
        stream.seek(50 << 30)
        stream.write(page_of(1))
    encoded = encode(ram, snapshot.state, compatibility(1 << 36), tmp_path / "big", created=CREATED)
    assert encoded.stored_bytes == PAGE_BYTES
    assert ram.stat().st_blocks * 512 == PAGE_BYTES
    decode(tmp_path / "big", encoded.digest, tmpfs_dir / "decoded")
    image = (tmpfs_dir / "decoded" / "ram").stat()
    assert (image.st_size, image.st_blocks * 512) == (1 << 36, PAGE_BYTES)


def test_the_blob_does_not_depend_on_the_number_of_threads(
    snapshot: Snapshot, encoded: EncodedRamsnap, tmp_path: Path
) -> None:
    assert snapshot.encode(tmp_path / "other", threads=1, niceness=1) == encoded


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50))
def test_pieces_of_any_size_are_decoded(sizes: list[int]) -> None:
    content = (VECTORS / "sparse.ramsnap").read_bytes()
    with tempfile.TemporaryDirectory() as name:
        with RamsnapDecoder(Path(name) / "pieces", threads=1) as decoder:
            at = 0
            while at < len(content):
                size = sizes[at % len(sizes)]
                decoder.feed(content[at : at + size])
                at += size
            header = decoder.finish(digest_of(content))
        assert header == decode(VECTORS / "sparse.ramsnap", digest_of(content), Path(name) / "whole", threads=1)
        assert same_content(Path(name) / "pieces", Path(name) / "whole")


_vectors = json.loads((VECTORS / "vectors.json").read_text())


@pytest.mark.parametrize("vector", _vectors, ids=lambda vector: vector["name"])
def test_vectors_are_made_and_read(vector: dict[str, Any], tmp_path: Path) -> None:
    texts: dict[str, str | None] = vector.get("changed") or {str(page): f"page {page}" for page in vector["pages"]}
    snapshot = Snapshot.write(
        tmp_path / "snapshot",
        {int(page): hashlib.sha256(text.encode()).digest() * 128 for page, text in texts.items() if text is not None},
        vector["memory_bytes"],
        {name: text.encode() for name, text in vector["state"].items()},
    )
    changes = None
    if "parent" in vector:
        parent = next(each["digest"] for each in _vectors if each["name"] == vector["parent"])
        changes = Changes(parent=parent, extents=[(int(page) * PAGE_BYTES, PAGE_BYTES) for page in texts])
    stored = VECTORS / f"{vector['name']}.ramsnap"
    header = read_header(stored)
    encoded = encode(
        snapshot.ram,
        snapshot.state,
        header.compatibility,
        tmp_path / "blob",
        created=header.created,
        changes=changes,
    )
    assert (encoded.digest, encoded.header_digest) == (vector["digest"], vector["header_digest"])
    assert (tmp_path / "blob").read_bytes() == stored.read_bytes()
    if changes is None:
        assert decode(stored, digest_of(stored.read_bytes()), tmp_path / "decoded") == header
        assert same_content(tmp_path / "snapshot", tmp_path / "decoded")


@pytest.mark.real
@pytest.mark.skipif(shutil.which("lz4") is None, reason="needs the lz4 command")
def test_the_lz4_command_decodes_all_of_it(snapshot: Snapshot, encoded: EncodedRamsnap, blob: Path) -> None:
    shown = subprocess.run(["lz4", "-d", "-c", blob], check=True, capture_output=True).stdout
    index = read_index(blob)
    head = blob.read_bytes()[: index.frames[0].offset]
    assert encoded.header_digest == digest_of(head)
    assert shown.startswith(b"OVMSRAM1")
    state = b"".join((snapshot.state / file.name).read_bytes() for file in index.header.state)
    ram = snapshot.ram.read_bytes()
    pages = b"".join(
        ram[at : at + PAGE_BYTES] for at in range(0, len(ram), PAGE_BYTES) if any(ram[at : at + PAGE_BYTES])
    )
    assert shown[-len(state + pages) :] == state + pages
    assert len(shown) == len(head) - 27 + len(state + pages)
    assert subprocess.run(["lz4", "-t", "-q", blob], check=False).returncode == 0


@pytest.mark.parametrize(
    "extent", [(1, PAGE_BYTES), (0, 1), (0, 0), (-PAGE_BYTES, PAGE_BYTES), (0, 1 << 40), (1 << 40, PAGE_BYTES)]
)
def test_changes_are_pages_of_the_image(extent: tuple[int, int], snapshot: Snapshot, blob: Path) -> None:
    with pytest.raises(InvalidInput, match="no pages"):
        snapshot.encode(blob, changes=Changes(parent=digest_of(b"parent"), extents=[extent]))
    assert not blob.exists()


def test_a_layer_holds_what_changed_and_nothing_else(snapshot: Snapshot, tmp_path: Path) -> None:
    extents = [(5 * PAGE_BYTES, PAGE_BYTES), (PAGES_PER_FRAME * PAGE_BYTES - PAGE_BYTES, 2 * PAGE_BYTES)]
    encoded = snapshot.encode(tmp_path / "layer", changes=Changes(parent=digest_of(b"parent"), extents=extents))
    assert (encoded.parent, encoded.stored_bytes) == (digest_of(b"parent"), 3 * PAGE_BYTES)
    ram = [record for record in read_index(tmp_path / "layer").frames if not record.is_state]
    assert [list(page_runs(record.pages)) for record in ram] == [[(5, 1), (PAGES_PER_FRAME - 1, 1)], [(0, 1)], []]
    assert all(record.inherits for record in ram)


@pytest.mark.parametrize("size_bytes", [0, 1, PAGE_BYTES + 1])
def test_ram_is_a_whole_number_of_pages(size_bytes: int, tmp_path: Path) -> None:
    snapshot = Snapshot.write(tmp_path / "snapshot", {}, size_bytes, {})
    with pytest.raises(InvalidSize):
        snapshot.encode(tmp_path / "blob")
    assert not (tmp_path / "blob").exists()


def test_state_that_is_no_plain_file_is_refused(snapshot: Snapshot, blob: Path) -> None:
    (snapshot.state / "directory").mkdir()
    with pytest.raises(InvalidInput, match="directory"):
        snapshot.encode(blob)
    assert not blob.exists()


def test_missing_ram_is_named(snapshot: Snapshot, blob: Path) -> None:
    snapshot.ram.unlink()
    with pytest.raises(FileMissing, match="ram"):
        encode(snapshot.ram, snapshot.state, compatibility(PAGE_BYTES), blob, created=CREATED)


def test_progress_goes_up_to_all_of_it(snapshot: Snapshot, blob: Path) -> None:
    told: list[tuple[int, int]] = []
    size = snapshot.ram.stat().st_size
    encode(
        snapshot.ram,
        snapshot.state,
        compatibility(size),
        blob,
        created=CREATED,
        threads=1,
        progress=lambda done, of: told.append((done, of)),
    )
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_stopping_leaves_nothing(snapshot: Snapshot, encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        decode(blob, encoded.digest, tmp_path / "decoded", stop=stop)
    with pytest.raises(CancelledError):
        encode(snapshot.ram, snapshot.state, compatibility(4096), tmp_path / "out", created=CREATED, stop=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blob", "snapshot"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ramsnap")]


def test_the_frame_table_vouches_for_single_frames(encoded: EncodedRamsnap, blob: Path) -> None:
    with blob.open("rb") as stream:
        for record in read_index(blob).frames:
            stored = os.pread(stream.fileno(), record.stored_bytes, record.offset)
            if stored:
                assert hashlib.sha256(stored).digest() == record.digest
