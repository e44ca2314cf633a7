"""Memory figures and the proof of copy-on-write: parsed from text, and seen on mappings of our own."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from anyio.to_thread import run_sync
from hypothesis import given
from hypothesis import strategies as st

from spec.errors import FileMissing, MemoryNotShared, VmmExited
from vmm.driver import Ram
from vmm.process import VmmProcess
from vmm.smaps import Mapping, memory_use, parse_smaps, prove_private, ram_mapping, summarise

PAGE = mmap.PAGESIZE
SIZE = 64 * PAGE

SAMPLE = b"""55d0a0000000-55d0a0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Rss:                   8 kB
Private_Dirty:         8 kB
Anonymous:             8 kB
VmFlags: rd wr mr mw me ac sd
7f1200000000-7f1210000000 rw-p 00000000 00:1a 77                         /dev/shm/an image/ram (deleted)
Size:             262144 kB
Rss:                 300 kB
Shared_Clean:        200 kB
Private_Dirty:       100 kB
Anonymous:            96 kB
THPeligible:           0
VmFlags: rd wr mr mw me ac sd
"""


def test_a_sample_of_the_kernel() -> None:
    heap, ram = parse_smaps(SAMPLE)
    assert (heap.path, heap.private, heap.size_bytes, heap.own_bytes) == ("[heap]", True, 132 * 1024, 8 * 1024)
    assert (ram.path, ram.inode, ram.device) == ("/dev/shm/an image/ram (deleted)", 77, os.makedev(0, 0x1A))
    assert ram.counters["Anonymous"] == 96 * 1024


def test_our_own_map_has_the_memory_that_the_kernel_counts() -> None:
    parsed = list(parse_smaps(Path("/proc/self/smaps").read_bytes()))
    headers = Path("/proc/self/maps").read_bytes().splitlines()
    assert len(parsed) == pytest.approx(len(headers), abs=3)
    assert all(mapping.counters["Rss"] <= mapping.size_bytes for mapping in parsed)
    assert any(mapping.path == "[stack]" for mapping in parsed)


paths = st.text(
    st.characters(codec="utf-8", exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=30
)
mappings = st.builds(
    Mapping,
    start=st.integers(0, 2**47),
    end=st.integers(2**47, 2**48),
    permissions=st.sampled_from(["r--p", "rw-p", "rw-s", "r-xp", "---p"]),
    offset=st.integers(0, 2**47),
    device=st.builds(os.makedev, st.integers(0, 4095), st.integers(0, 255)),
    inode=st.integers(0, 2**64 - 1),
    path=paths.map(str.strip),
    counters=st.dictionaries(
        st.sampled_from(["Rss", "Pss", "Anonymous", "Private_Dirty", "Locked"]),
        st.integers(0, 2**40).map(lambda k: k * 1024),
    ),
)


def rendered(mapping: Mapping) -> bytes:
    header = (
        f"{mapping.start:x}-{mapping.end:x} {mapping.permissions} {mapping.offset:08x}"
        f" {os.major(mapping.device):02x}:{os.minor(mapping.device):02x} {mapping.inode}"
    )
    lines = [f"{header:<72} {mapping.path}".rstrip()]
    lines += [f"{name}:{size // 1024:>20} kB" for name, size in mapping.counters.items()]
    return os.fsencode("\n".join([*lines, "THPeligible:    0", "VmFlags: rd wr\n"]))


@given(st.lists(mappings, max_size=5))
def test_what_the_kernel_writes_is_read(expected: list[Mapping]) -> None:
    assert list(parse_smaps(b"".join(map(rendered, expected)))) == expected


@given(st.binary(max_size=300))
def test_no_text_breaks_the_parser(text: bytes) -> None:
    list(parse_smaps(text))
    list(parse_smaps(SAMPLE + text))


def test_two_mappings_of_one_file_are_one_ram() -> None:
    def piece(start: int, offset: int, length: int) -> Mapping:
        return Mapping(
            start=start, end=start + length, permissions="rw-p", offset=offset, device=1, inode=2, path="ram",
            counters={"Rss": 4096},
        )  # fmt: skip

    below, above = piece(0x1000000, 0, 0xC000), piece(0x9000000, 0xC000, 0x4000)
    both = summarise([above, below])
    assert both is not None
    assert (both.whole, both.size_bytes, both.rss_bytes) == (True, 0x10000, 8192)
    twice, gap = summarise([below, below]), summarise([above])
    assert twice is not None
    assert gap is not None
    assert not twice.whole
    assert not gap.whole
    assert summarise([]) is None


@contextmanager
def mapped(path: Path, flags: int, length: int = SIZE) -> Iterator[mmap.mmap]:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), length, flags) as memory:
        yield memory


@pytest.fixture
def ram(tmpfs_dir: Path) -> Ram:
    path = tmpfs_dir / "ram"
    path.write_bytes(b"image" * (SIZE // 5 + 1))
    os.truncate(path, SIZE)
    return Ram(path=path, size_bytes=SIZE, private=True)


def test_a_private_mapping_is_proven_and_its_pages_are_told_apart(ram: Ram) -> None:
    before = memory_use(os.getpid(), ram)
    assert (before.image_shared_bytes, before.ram_private_bytes) == (0, 0)
    with mapped(ram.path, mmap.MAP_PRIVATE) as memory:
        prove_private(os.getpid(), ram)
        _ = bytes(memory)  # every page is mapped
        memory[: 3 * PAGE] = bytes(3 * PAGE)  # three are ours
        prove_private(os.getpid(), ram)
        use = memory_use(os.getpid(), ram)
        assert (use.image_shared_bytes, use.ram_private_bytes) == (SIZE - 3 * PAGE, 3 * PAGE)
        assert use.process_private_bytes > use.ram_private_bytes
        ram.path.rename(ram.path.with_name("renamed"))
        moved = Ram(path=ram.path.with_name("renamed"), size_bytes=SIZE, private=True)
        prove_private(os.getpid(), moved)
    assert moved.path.read_bytes()[:5] == b"image"


def test_the_owner_of_its_ram_has_all_of_it(ram: Ram) -> None:
    owner = Ram(path=ram.path, size_bytes=SIZE, private=False)
    with mapped(ram.path, mmap.MAP_SHARED) as memory:
        memory[:PAGE] = bytes(PAGE)
        use = memory_use(os.getpid(), owner)
    assert (use.image_shared_bytes, use.ram_private_bytes) == (0, PAGE)


def copied(memory: mmap.mmap) -> None:
    memory[:] = bytes(SIZE)


def left_alone(memory: mmap.mmap) -> None:
    assert len(memory)


@pytest.mark.parametrize(
    ("flags", "length", "act", "found"),
    [
        (mmap.MAP_SHARED, SIZE, left_alone, "maps the file shared"),
        (mmap.MAP_PRIVATE, SIZE // 2, left_alone, "maps 128 KiB of 256 KiB"),
        (mmap.MAP_PRIVATE, SIZE, copied, "256 KiB of 256 KiB are copies"),
    ],
)
def test_anything_else_is_an_error_that_says_what_it_found(
    ram: Ram, flags: int, length: int, act: Callable[[mmap.mmap], None], found: str
) -> None:
    with mapped(ram.path, flags, length) as memory:
        act(memory)
        with pytest.raises(MemoryNotShared, match=found):
            prove_private(os.getpid(), ram)


def test_a_copy_in_anonymous_memory_is_found(ram: Ram) -> None:
    with mmap.mmap(-1, SIZE) as memory:
        memory[:] = ram.path.read_bytes()
        with pytest.raises(MemoryNotShared, match="does not map the file at all"):
            prove_private(os.getpid(), ram)


async def test_a_process_that_is_gone(ram: Ram) -> None:
    process = VmmProcess.spawn(["true"], stderr=ram.path.with_name("log"))
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 (a zombie now, and still unreaped)
    with pytest.raises(VmmExited):
        await run_sync(memory_use, process.pid, ram)
    await process.wait()
    with pytest.raises(VmmExited):
        await run_sync(prove_private, process.pid, ram)


def test_a_ram_file_that_is_gone(ram: Ram) -> None:
    ram.path.unlink()
    with pytest.raises(FileMissing):
        ram_mapping(os.getpid(), ram.path)
