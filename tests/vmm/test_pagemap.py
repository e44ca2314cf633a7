"""Changed pages: the flags of pagemap, gaps between extents, and a real process with a private mapping."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import huge_tmpfs
from cache.memory_map import MemoryMap
from spec.errors import FileMissing, InUse, MemoryNotShared, NoSpace, PermissionMissing, VmmExited
from spec.sizes import MIB, PAGE_BYTES
from vmm import pagemap, pagemap_scan, process_memory
from vmm.pagemap import Extent, capture_own_pages, complete_image, gaps, own_extents

PRESENT, SWAPPED, OF_FILE, SOFT_DIRTY = 1 << 63, 1 << 62, 1 << 61, 1 << 55

CLONE = """
import mmap, sys
file = open(sys.argv[1], sys.argv[2])
private = sys.argv[2] == "rb"
memory = mmap.mmap(file.fileno(), 0, *(
    (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) if private else (mmap.MAP_SHARED,)
))
sum(memory[page * 4096] for page in range(0, len(memory) // 4096, 3))  # reads make no page its own
for page in map(int, filter(None, sys.argv[3].split(","))):
    memory[page * 4096 + 7] = 0xAA
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def clone_of(image: Path, *pages: int, mode: str = "rb") -> Iterator[int]:
    """A process that maps the image and wrote to some of its pages."""
    arguments = [sys.executable, "-c", CLONE, str(image), mode, ",".join(map(str, pages))]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid


@pytest.fixture
def image(tmpfs_dir: Path) -> Path:
    """16 MiB: data, a long hole, data, a hole to the end."""
    path = tmpfs_dir / "image"
    with path.open("wb") as file:
        file.write(os.urandom(MIB))
        file.seek(8 * MIB)
        file.write(os.urandom(MIB))
        file.truncate(16 * MIB)
    return path


@given(st.lists(st.sampled_from([0, PRESENT, SWAPPED, PRESENT | OF_FILE, PRESENT | SOFT_DIRTY, OF_FILE, 0x1FF])))
def test_own_extents_are_the_pages_that_are_there_and_not_the_files(entries: list[int]) -> None:
    found = list(own_extents(struct.pack(f"<{len(entries)}Q", *entries)))
    pages = {page for extent in found for page in range(extent.offset // PAGE_BYTES, extent.end // PAGE_BYTES)}
    assert pages == {
        number for number, entry in enumerate(entries) if entry & (PRESENT | SWAPPED) and not entry & OF_FILE
    }
    assert all(left.end < right.offset for left, right in itertools.pairwise(found))


@given(st.sets(st.integers(0, 63)), st.integers(0, 64))
def test_gaps_and_extents_are_the_whole(pages: set[int], size: int) -> None:
    extents = [Extent(page * 10, 10) for page in sorted(pages) if page < size]
    between = list(gaps(extents, size * 10))
    covered = sorted([*extents, *between])
    assert sum(extent.length for extent in covered) == size * 10
    assert all(left.end == right.offset for left, right in itertools.pairwise(covered))
    assert all(extent.length > 0 for extent in between)


@pytest.fixture(params=["scan", "list"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of today, and one without PAGEMAP_SCAN where process_vm_readv is forbidden, too."""
    way: str = request.param
    if way == "list":
        monkeypatch.setattr(pagemap, "own_ranges", lambda *_: None)
        monkeypatch.setattr(pagemap, "read_ranges", _denied)
    return way


@pytest.mark.parametrize(
    "pages", [(0,), (4095,), (1, 2, 3, 500, 2048, 2049, 4000), tuple(range(0, 4096, 2)), tuple(range(4096)), ()]
)
@pytest.mark.usefixtures("kernel")
def test_image_and_changed_pages_are_the_clones_memory(image: Path, pages: tuple[int, ...]) -> None:
    copy = image.with_name("copy")
    before = image.read_bytes()
    expected = bytearray(before)
    for page in pages:
        expected[page * PAGE_BYTES + 7] = 0xAA
    with clone_of(image, *pages) as pid:
        own = capture_own_pages(pid, image, copy)
    assert sum(extent.length for extent in own) == len(set(pages)) * PAGE_BYTES
    assert copy.stat().st_blocks * 512 == len(set(pages)) * PAGE_BYTES
    complete_image(image, own, copy)
    assert copy.read_bytes() == expected
    assert image.read_bytes() == before


@pytest.fixture
def huge_image(tmp_path: Path) -> Iterator[Path]:
    """8 MiB in huge pages."""
    place = tmp_path / "huge"
    try:
        huge_tmpfs.mount(place)
    except OSError as error:
        pytest.skip(f"may not mount a tmpfs with huge pages: {error}")
    try:
        image = place / "image"
        with image.open("w+b", 0) as file:
            file.truncate(8 * MIB)
            memory = MemoryMap(file.fileno(), 8 * MIB, writable=True)
            memory.advise_huge(0, 8 * MIB)
            memory.populate(0, 8 * MIB, write=True)
            memory.close()
            file.write(os.urandom(8 * MIB))
        yield image
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=30)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("pages", [(), (0, 511, 512, 1500), tuple(range(512, 1024))])
def test_pages_of_a_clone_of_huge_pages_are_single_ones(huge_image: Path, pages: tuple[int, ...]) -> None:
    copy = huge_image.with_name("copy")
    expected = bytearray(huge_image.read_bytes())
    for page in pages:
        expected[page * PAGE_BYTES + 7] = 0xAA
    with clone_of(huge_image, *pages) as pid:
        own = capture_own_pages(pid, huge_image, copy)
    assert sum(extent.length for extent in own) == len(pages) * PAGE_BYTES
    complete_image(huge_image, own, copy)
    assert copy.read_bytes() == expected


def test_holes_stay_holes(tmpfs_dir: Path) -> None:
    parent, copy = tmpfs_dir / "parent", tmpfs_dir / "copy"
    with parent.open("wb") as file:
        file.write(b"x" * MIB)
        file.seek(512 * MIB)
        file.write(b"y" * PAGE_BYTES)
        file.truncate(1024 * MIB)
    with copy.open("wb") as file:
        file.seek(100 * MIB)
        file.write(b"z" * PAGE_BYTES)
        file.truncate(1024 * MIB)
    complete_image(parent, [Extent(100 * MIB, PAGE_BYTES)], copy)
    assert copy.stat().st_blocks * 512 == MIB + 2 * PAGE_BYTES
    with copy.open("rb") as file:
        assert os.pread(file.fileno(), 1, 100 * MIB) + os.pread(file.fileno(), 1, 512 * MIB) == b"zy"


def test_more_pages_than_are_looked_at_at_once(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemap, "_ENTRIES_AT_ONCE", 7)
    monkeypatch.setattr(pagemap, "_COPY_BYTES", PAGE_BYTES)
    monkeypatch.setattr(pagemap_scan, "_REGIONS", 3)
    monkeypatch.setattr(process_memory, "_MOST_RANGES", 2)
    monkeypatch.setattr(process_memory, "_MOST_BYTES", 3 * PAGE_BYTES)
    copy = image.with_name("copy")
    pages = [page for page in range(140) if page % 7 not in (2, 5)]
    with clone_of(image, *pages) as pid:
        own = capture_own_pages(pid, image, copy)
    complete_image(image, own, copy)
    assert sum(extent.length for extent in own) == 100 * PAGE_BYTES
    content = copy.read_bytes()
    assert bytes(content[page * PAGE_BYTES + 7] for page in pages) == b"\xaa" * 100


def test_pages_are_put_over_a_copy_of_the_image(image: Path) -> None:
    copy = image.with_name("copy")
    copy.write_bytes(image.read_bytes())
    expected = bytearray(image.read_bytes())
    for page in (1, 3000):
        expected[page * PAGE_BYTES + 7] = 0xAA
    with clone_of(image, 1, 3000) as pid:
        own = capture_own_pages(pid, image, copy, over_image=True)
        with pytest.raises(FileMissing):
            capture_own_pages(pid, image, image.with_name("none"), over_image=True)
    assert [extent.offset for extent in own] == [PAGE_BYTES, 3000 * PAGE_BYTES]
    assert copy.read_bytes() == expected


def test_both_ways_to_look_find_the_same(image: Path) -> None:
    with clone_of(image, *range(0, 4096, 5), 4095) as pid, Path(f"/proc/{pid}/pagemap").open("rb", 0) as file:
        (mapping,) = pagemap._private_mappings(Path(f"/proc/{pid}"), image.stat())
        found = pagemap_scan.own_ranges(file.fileno(), mapping.start, mapping.end)
        if found is None:
            pytest.skip("this kernel has no PAGEMAP_SCAN")
        assert list(found) == list(pagemap._listed(mapping, file.fileno()))


def test_a_full_tmpfs_is_told_as_such(image: Path, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", mount], capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        with clone_of(image, *range(200)) as pid, pytest.raises(NoSpace):
            capture_own_pages(pid, image, mount / "copy")
        assert not list(mount.iterdir())
    finally:
        subprocess.run(["umount", mount], check=True, timeout=30)


def test_a_shared_mapping_has_no_pages_of_its_own(image: Path) -> None:
    copy = image.with_name("copy")
    with clone_of(image, 1, mode="r+b") as pid, pytest.raises(MemoryNotShared):
        capture_own_pages(pid, image, copy)
    with pytest.raises(MemoryNotShared):
        capture_own_pages(os.getpid(), image, copy)
    assert not copy.exists()


def _denied(*_: object) -> None:
    raise OSError(1, "Operation not permitted")


def test_faults_are_told_and_leave_no_copy(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = image.with_name("copy")
    with clone_of(image, 1) as pid:
        with pytest.raises(FileMissing):
            capture_own_pages(pid, image.with_name("gone"), copy)
        with pytest.raises(FileMissing):
            capture_own_pages(pid, image, image.with_name("no directory") / "copy")
        copy.touch()
        with pytest.raises(InUse):
            capture_own_pages(pid, image, copy)
        copy.unlink()
        monkeypatch.setattr(pagemap, "read_ranges", _denied)
        for number, expected in ((28, NoSpace), (13, PermissionMissing), (3, VmmExited)):
            with monkeypatch.context() as patch:

                def fail(*_: object, number: int = number) -> int:
                    raise OSError(number, os.strerror(number))

                patch.setattr(os, "pwrite", fail)
                with pytest.raises(expected):
                    capture_own_pages(pid, image, copy)
            assert not copy.exists()
    with pytest.raises(VmmExited):
        capture_own_pages(pid, image, copy)
    with pytest.raises(FileMissing):
        complete_image(image, [], copy)
