"""A tmpfs with huge pages: mounted over what is empty, kept while it is in use, and filled where images are dense."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache import huge_tmpfs
from cache.ramsnap import EncodedRamsnap, decode, read_index
from cache.ramsnap.dense import dense_extents, joined
from cache.resident import ResidentImages
from spec.errors import CapacityExceeded, NoSpace
from spec.ramsnap import PAGES_PER_FRAME
from spec.sizes import MIB, PAGE_BYTES
from tests.cache.ramsnap.snapshots import Snapshot, page_of, same_content

HALF = PAGES_PER_FRAME // 2


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """Of 2 MiB each: full, three quarters (every fourth page zero), a few pages, nothing, then half of a part."""
    pages = {*range(HALF), *(HALF + page for page in range(HALF) if page % 4), 2 * HALF, 2 * HALF + 7}
    pages |= set(range(4 * HALF, 4 * HALF + HALF // 2))
    return Snapshot.write(
        tmp_path / "snapshot",
        {page: page_of(page) for page in pages},
        (4 * HALF + HALF // 2) * PAGE_BYTES,
        {"device": b"registers"},
    )


@pytest.fixture
def encoded(tmp_path: Path, snapshot: Snapshot) -> EncodedRamsnap:
    """Of ``blob``."""
    return snapshot.encode(tmp_path / "blob", threads=1)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with the mount; unmounted afterwards, whatever is left there."""
    place = tmp_path / "huge"
    try:
        huge_tmpfs.mount(place)
    except OSError as error:
        pytest.skip(f"may not mount a tmpfs with huge pages: {error}")
    yield place
    if place.is_mount():
        subprocess.run(["umount", place], check=True, timeout=30)


def test_dense_parts_are_those_with_three_quarters_of_data(tmp_path: Path, encoded: EncodedRamsnap) -> None:
    dense = dense_extents(read_index(tmp_path / "blob"))
    assert dense == {0: 0, 2 * MIB: HALF // 4 * PAGE_BYTES}
    assert list(joined(dense)) == [(0, 4 * MIB)]
    assert list(joined([0, 4 * MIB, 6 * MIB])) == [(0, 2 * MIB), (4 * MIB, 4 * MIB)]
    assert list(joined([])) == []


def test_dense_parts_are_filled_and_the_others_keep_their_holes(
    tmp_path: Path, encoded: EncodedRamsnap, place: Path
) -> None:
    decode(tmp_path / "blob", encoded.digest, place / "out", threads=2)
    assert same_content(place / "out", tmp_path / "snapshot")
    taken = (place / "out" / "ram").stat().st_blocks * 512
    assert encoded.stored_bytes <= taken <= encoded.stored_bytes + HALF // 4 * PAGE_BYTES


async def test_the_room_that_is_kept_covers_what_is_taken(
    tmp_path: Path, snapshot: Snapshot, encoded: EncodedRamsnap, place: Path
) -> None:
    images = ResidentImages(place / "images", mlock="best-effort", budget_bytes=encoded.stored_bytes + PAGE_BYTES)
    await images.open()
    with pytest.raises(CapacityExceeded):
        async with images.lease(encoded.digest, tmp_path / "blob", mlock_required=False, preload=False):
            pass
    await images.close()
    needed = encoded.stored_bytes + HALF // 4 * PAGE_BYTES + PAGE_BYTES
    images = ResidentImages(place / "images", mlock="best-effort", budget_bytes=needed)
    await images.open()
    async with images.lease(encoded.digest, tmp_path / "blob", mlock_required=False, preload=True) as image:
        assert same_content(image.ram, snapshot.ram)
        assert images.figures().resident_bytes <= needed
    await images.close()


def test_a_mount_with_something_in_it_is_kept(place: Path) -> None:
    (place / "lock").touch()
    (place / "directory").mkdir()
    assert not huge_tmpfs.mount(place)
    assert not huge_tmpfs.unmount(place)
    assert huge_tmpfs.unmount(place, beside="lock")
    assert not place.is_mount()
    assert not huge_tmpfs.unmount(place)


def test_nothing_is_mounted_over_what_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="in use"):
        huge_tmpfs.mount(tmp_path)
    assert not tmp_path.is_mount()


def test_a_full_one_is_no_space(tmp_path: Path, tmpfs_dir: Path) -> None:
    mount = tmpfs_dir / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,huge=advise", "none", str(mount)]
    if subprocess.run(command, capture_output=True, timeout=30).returncode:
        pytest.skip("may not mount a tmpfs with huge pages")
    try:
        noise = random.Random(5)
        pages = {page: noise.randbytes(PAGE_BYTES) for page in range(3 * PAGES_PER_FRAME)}
        snapshot = Snapshot.write(tmp_path / "snapshot", pages, 3 * PAGES_PER_FRAME * PAGE_BYTES, {})
        encoded = snapshot.encode(tmp_path / "blob")
        with pytest.raises(NoSpace):
            decode(tmp_path / "blob", encoded.digest, mount / "out")
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", mount], check=True, timeout=30)
