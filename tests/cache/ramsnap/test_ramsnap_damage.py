"""Whatever is wrong with a blob, it is found, nothing is left over, and nothing was allocated by what it claims."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lz4.frame
import pytest

from cache.ramsnap import EncodedRamsnap, decode, read_header, read_index
from cache.ramsnap.lz4_frame import compress_frame
from spec.digest import Digest, digest_of
from spec.errors import BlobNotFound, Corrupt, CorruptRamsnap, DigestMismatch, NoSpace, SizeMismatch, Unsupported
from spec.ramsnap import FRAME_BYTES, PAGES_PER_FRAME, RamsnapLimits, StateFile
from spec.sizes import PAGE_BYTES
from tests.cache.ramsnap.snapshots import Blob, Snapshot, page_of

VECTOR = Path(__file__).parents[3] / "spec" / "vectors" / "sparse.ramsnap"
FULL, DEVICE = 3, 1
"""Frames of the sample: config.json, device in two pieces, then RAM: the full one."""


def refused(blob: Path, expected: Digest, destination: Path, **limits: int) -> Exception:
    """The error of decoding a blob, after which nothing is left."""
    with pytest.raises((Corrupt, Unsupported)) as caught:
        decode(blob, expected, destination, threads=1, limits=RamsnapLimits(**limits))
    assert not destination.exists()
    return caught.value


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    content, blob = VECTOR.read_bytes(), tmp_path / "blob"
    expected = digest_of(content)
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        blob.write_bytes(changed)
        assert isinstance(refused(blob, expected, tmp_path / "out"), Corrupt | Unsupported)


def test_any_truncation_is_found(tmp_path: Path) -> None:
    content, blob = VECTOR.read_bytes(), tmp_path / "blob"
    expected = digest_of(content)
    for length in range(len(content)):
        blob.write_bytes(content[:length])
        assert isinstance(refused(blob, expected, tmp_path / "out"), SizeMismatch | CorruptRamsnap)


def test_changes_in_large_frames_are_found(encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    content = blob.read_bytes()
    rng = random.Random(7)
    edges = [at for record in read_index(blob).frames for at in (record.offset, record.offset + record.stored_bytes)]
    places = {min(max(edge + step, 0), len(content) - 1) for edge in edges for step in (-4, -1, 0, 4, 6, 14, 15, 19)}
    for at in sorted(places | {rng.randrange(len(content)) for _ in range(40)}):
        changed = bytearray(content)
        changed[at] ^= 1 << rng.randrange(8)
        blob.write_bytes(changed)
        refused(blob, encoded.digest, tmp_path / "out")
        blob.write_bytes(content[:at])
        refused(blob, encoded.digest, tmp_path / "out")


def test_trailing_bytes_are_found(encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    for more in (b"\0", compress_frame(b"more"), struct.pack("<II", 0x184D2A50, 0)):
        content = blob.read_bytes() + more
        (tmp_path / "longer").write_bytes(content)
        assert isinstance(refused(tmp_path / "longer", digest_of(content), tmp_path / "out"), SizeMismatch)


def test_another_digest_is_refused(encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    error = refused(blob, digest_of(b"another"), tmp_path / "out")
    assert isinstance(error, DigestMismatch)
    assert error.fields == {"expected": digest_of(b"another"), "actual": encoded.digest}


def _two_frames(payload: bytes) -> bytes:
    return compress_frame(payload[:PAGE_BYTES]) + compress_frame(payload[PAGE_BYTES:])


def _options(**options: object) -> Callable[[bytes], bytes]:
    return lambda payload: lz4.frame.compress(
        payload, **{"block_size": 7, "block_linked": False, "content_checksum": True, "store_size": True, **options}
    )


def _claims(content_bytes: int) -> Callable[[bytes], bytes]:
    """A frame that lies about its content size, with the header checksum that belongs to the lie."""

    def build(payload: bytes) -> bytes:
        frame = compress_frame(payload)
        fields = frame[4:6] + struct.pack("<Q", content_bytes)
        return frame[:4] + fields + compress_frame(fields)[-3:-2] + frame[15:]

    return build


HOSTILE_FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "two frames": _two_frames,
    "first frame only": lambda payload: compress_frame(payload[:-PAGE_BYTES]),
    "no end mark": lambda payload: compress_frame(payload)[:-8],
    "no checksum": lambda payload: compress_frame(payload)[:-4],
    "wrong checksum": lambda payload: compress_frame(payload)[:-1] + b"\0",
    "trailing byte": lambda payload: compress_frame(payload) + b"\0",
    "no content size": _options(store_size=False),
    "no content checksum": _options(content_checksum=False),
    "block checksums": _options(block_checksum=True),
    "shorter content": lambda payload: compress_frame(payload[:-1]),
    "longer content": lambda payload: compress_frame(payload + b"\0"),
    "claims less": _claims(PAGE_BYTES),
    "claims more": _claims(1 << 60),
    "right claim, less content": lambda payload: _claims(FRAME_BYTES)(payload[:-1]),
    "right claim, more content": lambda payload: _claims(FRAME_BYTES)(payload + bytes(PAGE_BYTES)),
    "a bomb": lambda _payload: _claims(FRAME_BYTES)(bytes(200 * FRAME_BYTES)),
    "garbage block": lambda payload: compress_frame(payload)[:15] + struct.pack("<I", 9) + b"\xff" * 9 + bytes(8),
    "tiny blocks": lambda payload: (
        compress_frame(payload)[:15]
        + b"".join(struct.pack("<I", 1 << 31 | 8) + payload[at : at + 8] for at in range(0, len(payload) // 2, 8))
        + bytes(8)
    ),
    "other magic": lambda payload: b"\x02\x21\x4c\x18" + compress_frame(payload)[4:],
    "one byte": lambda _payload: b"\4",
}


@pytest.mark.parametrize("kind", HOSTILE_FRAMES)
def test_frames_with_right_digests_and_wrong_content_are_refused(
    kind: str, encoded: EncodedRamsnap, blob: Path, tmp_path: Path
) -> None:
    parts = Blob.read(blob)
    parts.replace_frame(FULL, HOSTILE_FRAMES[kind](b"".join(map(page_of, range(PAGES_PER_FRAME)))))
    assert isinstance(refused(blob, parts.assemble(blob), tmp_path / "out"), CorruptRamsnap)


@pytest.mark.parametrize("block_size", [4, 5, 6, 7])
def test_blocks_of_every_size_are_read(block_size: int, encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    half = random.Random(3).randbytes(FRAME_BYTES // 2)  # blocks that are not compressed, and blocks that are
    payload = half + bytes(FRAME_BYTES // 2)
    parts = Blob.read(blob)
    parts.replace_frame(FULL, _options(block_size=block_size)(payload))
    decode(blob, parts.assemble(blob), tmp_path / "out", threads=1)
    with (tmp_path / "out" / "ram").open("rb") as ram:
        assert ram.read(FRAME_BYTES) == payload


def test_a_frame_that_is_not_the_recorded_one_is_refused(encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    parts = Blob.read(blob)
    parts.records[FULL] = replace(parts.records[FULL], digest=bytes(31) + b"x")
    error = refused(blob, parts.assemble(blob), tmp_path / "out")
    assert isinstance(error, DigestMismatch)
    assert error.fields == {"frame": FULL}


def test_a_rebuilt_blob_is_the_same(encoded: EncodedRamsnap, blob: Path) -> None:
    assert Blob.read(blob).assemble(blob) == encoded.digest


def test_state_that_does_not_match_its_digest_is_refused(encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    parts = Blob.read(blob)
    parts.replace_frame(DEVICE, compress_frame(bytes(FRAME_BYTES)))
    assert isinstance(refused(blob, parts.assemble(blob), tmp_path / "out"), DigestMismatch)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"parent": "sha256:" + "0" * 64},
        {"frame_bytes": PAGE_BYTES},
        {"page_bytes": 2 << 20},
    ],
)
def test_later_formats_are_unsupported_not_corrupt(
    changes: dict[str, object], encoded: EncodedRamsnap, blob: Path, tmp_path: Path
) -> None:
    parts = Blob.read(blob)
    parts.change_header(**changes)
    assert isinstance(refused(blob, parts.assemble(blob), tmp_path / "out"), Unsupported)


@pytest.mark.parametrize("name", ["../device", "/etc/passwd", "", ".", "..", "a/b", "-", "device\0", "x" * 101])
def test_state_names_cannot_leave_the_directory(name: str, encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    parts = Blob.read(blob)
    old = parts.header.state[0]
    parts.change_header(state=[StateFile(name=name, size=old.size, digest=old.digest), *parts.header.state[1:]])
    assert isinstance(refused(blob, parts.assemble(blob), tmp_path / "out"), CorruptRamsnap)


@pytest.mark.parametrize("claim", [1 << 60, 1 << 40, 0, -PAGE_BYTES, PAGE_BYTES + 1])
def test_claimed_memory_is_checked_before_use(claim: int, encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    parts = Blob.read(blob)
    parts.change_header(memory_bytes=claim)
    assert isinstance(refused(blob, parts.assemble(blob), tmp_path / "out"), CorruptRamsnap)


def test_limits_are_kept(encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    memory_bytes = read_header(blob).memory_bytes
    for limits in (
        {"max_memory_bytes": memory_bytes - 1},
        {"max_header_bytes": 1000},
        {"max_state_bytes": 4_000_000},
        {"max_state_files": 2},
    ):
        assert isinstance(refused(blob, encoded.digest, tmp_path / "out", **limits), CorruptRamsnap)


@pytest.mark.parametrize("claim", [1 << 63, 1 << 40, (64 << 20) + 1])
def test_a_claimed_header_is_not_read(claim: int, blob: Path) -> None:
    descriptor = b"\x04\x22\x4d\x18" + struct.pack("<BBQ", 0x6C, 0x70, claim)
    descriptor += compress_frame(descriptor[4:])[-3:-2]
    blob.write_bytes(descriptor + bytes(1000))
    with pytest.raises(CorruptRamsnap, match="allowed"):
        read_header(blob)


def test_a_full_tmpfs_is_no_space_and_left_clean(
    snapshot: Snapshot, encoded: EncodedRamsnap, blob: Path, small_tmpfs: Path
) -> None:
    with pytest.raises(NoSpace):
        decode(blob, encoded.digest, small_tmpfs / "out")
    with pytest.raises(NoSpace):
        Snapshot(ram=snapshot.ram, state=noise(small_tmpfs.parent / "noise")).encode(small_tmpfs / "blob")
    assert list(small_tmpfs.iterdir()) == []


def noise(directory: Path) -> Path:
    """Device state that does not compress."""
    directory.mkdir()
    (directory / "state").write_bytes(random.Random(1).randbytes(3 << 20))
    return directory


def test_a_missing_blob_is_named(tmp_path: Path) -> None:
    with pytest.raises(BlobNotFound):
        decode(tmp_path / "none", digest_of(b""), tmp_path / "out")


def test_a_destination_that_exists_is_not_touched(encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(Exception, match="exists"):
        decode(blob, encoded.digest, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "kept"
