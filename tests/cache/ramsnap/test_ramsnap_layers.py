"""Layers: what a chain of them holds is what the machine had, whatever is at hand already; all else is refused."""

from __future__ import annotations

import json
import random
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.ramsnap import Changes, EncodedRamsnap, copy_image, decode, read_chain, read_index
from cache.ramsnap.lz4_frame import compress_frame
from spec.digest import Digest, digest_of
from spec.errors import BlobNotFound, Corrupt, CorruptRamsnap, DigestMismatch, NoSpace, Unsupported
from spec.ramsnap import FLAG_INHERITED, MAX_LAYERS, PAGES_PER_FRAME
from spec.sizes import PAGE_BYTES
from tests.cache.ramsnap.snapshots import Blob, Snapshot, page_of, same_content

VECTORS = Path(__file__).parents[3] / "spec" / "vectors"


class Blobs:
    """A directory of blobs by their digests, and the snapshots that they were made of."""

    def __init__(self, directory: Path, pages: int) -> None:
        self.directory, self.memory_bytes = directory, pages * PAGE_BYTES
        self.ram: dict[int, bytes] = {}
        self.snapshots: list[Snapshot] = []
        self.encoded: list[EncodedRamsnap] = []

    def path(self, digest: Digest) -> Path:
        return self.directory / digest.replace(":", "-")

    def add(self, changed: Mapping[int, bytes], state: Mapping[str, bytes] | None = None) -> EncodedRamsnap:
        """One more snapshot of the machine, after it has changed these pages."""
        number = len(self.snapshots)
        self.ram |= changed
        state = {"device": page_of(number), f"only-{number}": b"x"} if state is None else state
        snapshot = Snapshot.write(self.directory / f"snapshot-{number}", self.ram, self.memory_bytes, state)
        changes = None
        if number:
            extents = [(page * PAGE_BYTES, PAGE_BYTES) for page in changed]
            changes = Changes(parent=self.encoded[-1].digest, extents=extents)
        encoded = snapshot.encode(self.directory / "part", changes=changes, threads=2)
        (self.directory / "part").rename(self.path(encoded.digest))
        self.snapshots.append(snapshot)
        self.encoded.append(encoded)
        return encoded

    def put(self, blob: Blob) -> Digest:
        digest = blob.assemble(self.directory / "part")
        (self.directory / "part").rename(self.path(digest))
        return digest

    def decode(self, digest: Digest, destination: Path, **options: Any) -> None:
        read_chain(digest, self.path(digest), self.path).decode(destination, threads=2, **options)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """A full snapshot and two layers: three frames, of which the layers change the first and the third."""
    made = Blobs(tmp_path, 2 * PAGES_PER_FRAME + 3)
    made.add({0: page_of(0), 7: page_of(7), PAGES_PER_FRAME: page_of(1)})
    made.add({7: bytes(PAGE_BYTES), 8: page_of(8)})
    made.add({8: page_of(88), 2 * PAGES_PER_FRAME + 2: page_of(9)})
    return made


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[dict[int, bytes]]]:
    """A size in pages, and what a machine changes from one snapshot to the next, sometimes back to zero."""
    pages = draw(st.integers(1, PAGES_PER_FRAME + 20))
    noise = random.Random(draw(st.integers(0, 1 << 32)))
    steps = []
    for _ in range(draw(st.integers(2, 5))):
        changed: dict[int, bytes] = {}
        for start, length, kind in draw(
            st.lists(st.tuples(st.integers(0, pages - 1), st.integers(1, 30), st.sampled_from("ntz")), max_size=6)
        ):
            for page in range(start, min(start + length, pages)):
                changed[page] = {"n": noise.randbytes(PAGE_BYTES), "t": page_of(page), "z": bytes(PAGE_BYTES)}[kind]
        steps.append(changed)
    return pages, steps


@settings(max_examples=25)
@given(history=histories(), at_hand=st.integers(0, 4))
def test_layers_are_what_the_machine_had(history: tuple[int, list[dict[int, bytes]]], at_hand: int) -> None:
    pages, steps = history
    with tempfile.TemporaryDirectory() as name:
        blobs = Blobs(Path(name), pages)
        for changed in steps:
            blobs.add(changed)
        for number, (snapshot, encoded) in enumerate(zip(blobs.snapshots, blobs.encoded, strict=True)):
            chain = read_chain(encoded.digest, blobs.path(encoded.digest), blobs.path)
            assert list(chain.parents) == [each.digest for each in blobs.encoded[:number]]
            image = Path(name) / f"image-{number}"
            header = chain.decode(image, threads=2)
            assert header == chain.header
            assert same_content(image, snapshot.ram.parent)
            state = sum(file.size for file in header.state)
            ram = (image / "ram").read_bytes()
            used = sum(any(ram[at : at + PAGE_BYTES]) for at in range(0, len(ram), PAGE_BYTES))
            assert used * PAGE_BYTES <= chain.image_bytes - state <= len(ram)
            if at_hand < number:
                below = (blobs.encoded[at_hand].digest, Path(name) / f"image-{at_hand}")
                chain.decode(Path(name) / "copied", below=below, threads=2)
                assert same_content(Path(name) / "copied", image)
                for file in (Path(name) / "copied").rglob("*"):
                    if file.is_file():
                        file.unlink()
                (Path(name) / "copied" / "state").rmdir()
                (Path(name) / "copied").rmdir()


def test_vectors_resolve(tmp_path: Path) -> None:
    vectors = {each["digest"]: each for each in json.loads((VECTORS / "vectors.json").read_text())}

    def path(digest: Digest) -> Path:
        return VECTORS / f"{vectors[digest]['name']}.ramsnap"

    for digest, vector in vectors.items():
        read_chain(digest, path(digest), path).decode(tmp_path / vector["name"], threads=1)
        assert digest_of((tmp_path / vector["name"] / "ram").read_bytes()) == vector["ram_digest"]
        state = {file.name: file.read_text() for file in (tmp_path / vector["name"] / "state").iterdir()}
        assert state == vector["state"]


def test_what_became_zero_is_a_hole(blobs: Blobs, tmpfs_dir: Path) -> None:
    blobs.decode(blobs.encoded[1].digest, tmpfs_dir / "image")
    assert (tmpfs_dir / "image" / "ram").stat().st_blocks * 512 == 3 * PAGE_BYTES


def test_a_layer_of_whole_frames(blobs: Blobs, tmp_path: Path) -> None:
    """A frame of a layer that does not inherit: its absent pages are zero, whatever the parent has."""
    layer = Blob.read(blobs.path(blobs.encoded[1].digest))
    first = next(number for number, record in enumerate(layer.records) if not record.is_state)
    for number in (first, first + 1):
        layer.records[number] = replace(layer.records[number], flags=0)
    blobs.decode(blobs.put(layer), tmp_path / "image")
    expected = Snapshot.write(tmp_path / "expected", {8: page_of(8)}, blobs.memory_bytes, {})
    assert same_content(tmp_path / "image" / "ram", expected.ram)


def test_a_layer_alone_is_not_decoded(blobs: Blobs, tmp_path: Path) -> None:
    digest = blobs.encoded[2].digest
    with pytest.raises(Unsupported):
        decode(blobs.path(digest), digest, tmp_path / "image")
    assert not (tmp_path / "image").exists()


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_parent_is_named(blobs: Blobs, missing: int) -> None:
    top, gone = blobs.encoded[2].digest, blobs.encoded[missing].digest
    blobs.path(gone).unlink()
    with pytest.raises(BlobNotFound, match=gone) as caught:
        read_chain(top, blobs.path(top), blobs.path)
    assert caught.value.fields == {"digest": top, "parent": gone}


def test_a_parent_with_another_size_of_memory(blobs: Blobs, tmp_path: Path) -> None:
    other = Blobs(blobs.directory, 5)
    parent = Snapshot.write(tmp_path / "small", {}, 5 * PAGE_BYTES, {}).encode(tmp_path / "part")
    (tmp_path / "part").rename(other.path(parent.digest))
    layer = Blob.read(blobs.path(blobs.encoded[1].digest))
    layer.change_header(parent=parent.digest)
    digest = blobs.put(layer)
    with pytest.raises(CorruptRamsnap, match="bytes of RAM"):
        read_chain(digest, blobs.path(digest), blobs.path)


def test_a_chain_has_an_end(blobs: Blobs, tmp_path: Path) -> None:
    for number in range(len(blobs.encoded), MAX_LAYERS):
        blobs.add({number: page_of(number)})
    deepest = blobs.encoded[-1].digest
    assert len(read_chain(deepest, blobs.path(deepest), blobs.path).layers) == MAX_LAYERS
    blobs.decode(deepest, tmp_path / "image")
    assert same_content(tmp_path / "image", blobs.snapshots[-1].ram.parent)
    too_deep = blobs.add({0: page_of(1)}).digest
    with pytest.raises(Unsupported, match=f"{MAX_LAYERS} layers"):
        read_chain(too_deep, blobs.path(too_deep), blobs.path)


def test_a_cycle_is_refused_before_it_is_followed(blobs: Blobs) -> None:
    """No digest of it can hold, but headers are read before digests are."""
    top, bottom = blobs.encoded[2].digest, blobs.encoded[0].digest
    blobs.path(bottom).write_bytes(blobs.path(top).read_bytes())
    with pytest.raises(CorruptRamsnap, match="a layer on itself"):
        read_chain(top, blobs.path(top), blobs.path)


def test_a_layer_on_another_image_than_its_parent(blobs: Blobs, tmp_path: Path) -> None:
    """The store says something else when it is asked again."""
    bottom, middle, top = (each.digest for each in blobs.encoded)
    chain = read_chain(top, blobs.path(top), blobs.path)
    layer = Blob.read(blobs.path(middle))
    layer.change_header(parent=digest_of(b"another"))
    layer.assemble(blobs.path(middle))
    with pytest.raises(DigestMismatch, match="not on"):
        chain.decode(tmp_path / "image", threads=1)
    assert bottom != middle


def test_any_damage_of_a_layer_is_found(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path, 20)
    blobs.add({1: page_of(1)}, {})
    blobs.add({1: bytes(PAGE_BYTES), 2: page_of(2)}, {"state": b"registers"})
    digest = blobs.encoded[1].digest
    content, path = blobs.path(digest).read_bytes(), blobs.path(digest)
    rng = random.Random(5)
    places = {rng.randrange(len(content)) for _ in range(40)} | set(range(len(content) - 20, len(content)))
    for attempt, at in enumerate(sorted(places)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        for damaged in (bytes(changed), content[:at], content + b"\0"):
            path.write_bytes(damaged)
            with pytest.raises((Corrupt, Unsupported, BlobNotFound)):
                blobs.decode(digest, tmp_path / f"image-{attempt}-{len(damaged)}")
    path.write_bytes(content)
    blobs.decode(digest, tmp_path / "image")


def test_a_lying_frame_of_a_layer_is_found(blobs: Blobs, tmp_path: Path) -> None:
    layer = Blob.read(blobs.path(blobs.encoded[1].digest))
    number = next(n for n, record in enumerate(layer.records) if record.flags == FLAG_INHERITED and record.stored_bytes)
    layer.replace_frame(number, compress_frame(bytes(PAGE_BYTES)))
    digest = blobs.put(layer)
    with pytest.raises(CorruptRamsnap):
        blobs.decode(digest, tmp_path / "image")


def test_state_of_a_layer_must_hash_to_its_digest(blobs: Blobs, tmp_path: Path) -> None:
    layer = Blob.read(blobs.path(blobs.encoded[1].digest))
    layer.replace_frame(0, compress_frame(page_of(999)))
    digest = blobs.put(layer)
    with pytest.raises(DigestMismatch, match="state file"):
        blobs.decode(digest, tmp_path / "image")


def test_stopping_a_chain(blobs: Blobs, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    blobs.decode(blobs.encoded[0].digest, tmp_path / "below")
    for below in (None, (blobs.encoded[0].digest, tmp_path / "below")):
        with pytest.raises(CancelledError):
            blobs.decode(blobs.encoded[2].digest, tmp_path / f"image-{below is None}", below=below, stop=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("ramsnap", "image"))]


def test_a_copy_of_an_image_keeps_its_holes(blobs: Blobs, tmpfs_dir: Path) -> None:
    source = tmpfs_dir / "source"
    copy_image(blobs.snapshots[2].ram, source)
    copy_image(source, tmpfs_dir / "copy", threads=3)
    assert same_content(tmpfs_dir / "copy", blobs.snapshots[2].ram)
    assert (tmpfs_dir / "copy").stat().st_blocks == source.stat().st_blocks < blobs.memory_bytes // 512 // 2


def test_a_copy_that_does_not_fit_is_not_left(small_tmpfs: Path, blobs: Blobs) -> None:
    (small_tmpfs / "source").write_bytes(random.Random(1).randbytes(1 << 20))
    (small_tmpfs / "other").write_bytes(bytes(1 << 19))
    with pytest.raises(NoSpace):
        copy_image(small_tmpfs / "source", small_tmpfs / "copy", threads=1)
    assert sorted(path.name for path in small_tmpfs.iterdir()) == ["other", "source"]


def test_an_index_tells_what_is_inherited(blobs: Blobs) -> None:
    frames = read_index(blobs.path(blobs.encoded[2].digest)).ram_frames
    assert [frame.inherits for frame in frames] == [True] * 3
    assert [frame.payload_bytes // PAGE_BYTES for frame in frames] == [1, 0, 1]
