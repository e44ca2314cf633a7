"""What the kernel says about a VMM's memory: ``/proc/PID/smaps`` (proc(5)), and the proof of copy-on-write from it.

Reading it walks the page tables, a fraction of a millisecond for a fresh clone and more for a large guest: the
functions here block, so call them in a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spec.errors import FileMissing, MemoryNotShared, PermissionMissing, VmmExited
from spec.sizes import format_size
from vmm.driver import MemoryUse, Ram
from vmm.memory_counters import memory_counters

_PROC = Path("/proc")

_HEADER = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)$", re.MULTILINE
)
_COUNTER = re.compile(rb"^(\w+): +(\d+) kB$", re.MULTILINE)

_COPIED_SHARE = 0.5
"""A clone that has just been restored wrote a few pages; a restore that copied wrote (nearly) all of them."""
_SURELY_NOT_COPIED_SHARE = 0.25
"""So much less that the process's counters, which are approximate, prove it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One line of ``/proc/PID/maps`` with its counters of smaps, in bytes."""

    start: int
    end: int
    permissions: str
    offset: int
    device: int
    inode: int
    path: str
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def private(self) -> bool:
        """Whether it was mapped with MAP_PRIVATE."""
        return self.permissions.endswith("p")

    @property
    def size_bytes(self) -> int:
        """The length of the address range."""
        return self.end - self.start

    @property
    def own_bytes(self) -> int:
        """Resident pages that no other process maps."""
        return self.counters.get("Private_Clean", 0) + self.counters.get("Private_Dirty", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RamMapping:
    """All mappings of a RAM file in one process taken together; sizes in bytes."""

    private: bool
    """All of them are MAP_PRIVATE."""
    size_bytes: int
    rss_bytes: int
    anonymous_bytes: int
    """Pages written through a private mapping: copies that belong to the process."""
    locked_bytes: int
    whole: bool
    """The mappings cover the file from its start without a gap, once."""


def parse_smaps(text: bytes, *, inode: int | None = None) -> Iterator[Mapping]:
    """The mappings of an smaps (or maps) file, all of them or those of one inode number (half the time of a proof).

    Lines that are neither header nor counter (VmFlags) are skipped.
    """
    headers = list(_HEADER.finditer(text))
    ends = [header.start() for header in headers] + [len(text)]
    for header, end in zip(headers, ends[1:], strict=True):
        start, stop, permissions, offset, major, minor, number, path = header.groups()
        if inode is not None and int(number) != inode:
            continue
        yield Mapping(
            start=int(start, 16),
            end=int(stop, 16),
            permissions=permissions.decode(),
            offset=int(offset, 16),
            device=os.makedev(int(major, 16), int(minor, 16)),
            inode=int(number),
            path=os.fsdecode(path),
            counters={
                name.decode(): int(kibibytes) * 1024 for name, kibibytes in _COUNTER.findall(text, header.end(), end)
            },
        )


def summarise(mappings: list[Mapping]) -> RamMapping | None:
    """The mappings of one file as one, or None if there are none (RAM below and above the PCI hole are two)."""
    if not mappings:
        return None
    expected_offset = 0
    for mapping in sorted(mappings, key=lambda each: each.offset):
        if mapping.offset != expected_offset:
            break
        expected_offset += mapping.size_bytes
    size_bytes = sum(mapping.size_bytes for mapping in mappings)
    return RamMapping(
        private=all(mapping.private for mapping in mappings),
        size_bytes=size_bytes,
        rss_bytes=_total(mappings, "Rss"),
        anonymous_bytes=_total(mappings, "Anonymous"),
        locked_bytes=_total(mappings, "Locked"),
        whole=expected_offset == size_bytes,
    )


def ram_mapping(pid: int, path: Path) -> RamMapping | None:
    """How a process maps the RAM file ``path`` (known by device and inode: files get renamed), None if not at all.

    Raises VmmExited, PermissionMissing, FileMissing (no such RAM file).
    """
    file = _inode_of(path)
    return summarise(_of_file(parse_smaps(_read(pid, "smaps"), inode=file.st_ino), file))


def prove_private(pid: int, ram: Ram) -> None:
    """Raise MemoryNotShared unless the process maps the whole RAM file MAP_PRIVATE and has not copied it.

    Where the process has too few pages of its own, all taken together, to have copied the RAM, its list of mappings
    is proof enough, and no page table is walked. Raises also VmmExited, PermissionMissing, FileMissing.
    """
    file = _inode_of(ram.path)
    few = memory_counters(pid).anonymous_bytes < _SURELY_NOT_COPIED_SHARE * ram.size_bytes
    found = summarise(_of_file(parse_smaps(_read(pid, "maps" if few else "smaps"), inode=file.st_ino), file))
    if found is None:
        fault = "it does not map the file at all"
    elif not found.private:
        fault = "it maps the file shared: what the clone writes would reach the image"
    elif not found.whole or found.size_bytes != ram.size_bytes:
        fault = f"it maps {format_size(found.size_bytes)} of {format_size(ram.size_bytes)}"
    elif found.anonymous_bytes > _COPIED_SHARE * ram.size_bytes:
        copied, size = format_size(found.anonymous_bytes), format_size(ram.size_bytes)
        fault = f"{copied} of {size} are copies of its own already"
    else:
        return
    raise MemoryNotShared(
        f"pid {pid} was to map {ram.path} copy-on-write, but {fault}",
        pid=pid,
        path=str(ram.path),
        mapped_bytes=found.size_bytes if found else 0,
        anonymous_bytes=found.anonymous_bytes if found else 0,
    )


def memory_use(pid: int, ram: Ram) -> MemoryUse:
    """The kernel's figures for one VMM. Raises VmmExited, PermissionMissing, FileMissing.

    Of a private mapping only anonymous pages count as private: pages of the image that nobody else maps just now are
    "Private" to smaps, yet cost nothing once a second clone reads them. Of a shared mapping (a cold-booted machine,
    the owner of its file) all resident pages are its own.
    """
    file = _inode_of(ram.path)
    mappings = list(parse_smaps(_read(pid, "smaps")))
    of_ram = _of_file(mappings, file)
    others = sum(mapping.own_bytes for mapping in mappings) - sum(mapping.own_bytes for mapping in of_ram)
    rss, anonymous = _total(of_ram, "Rss"), _total(of_ram, "Anonymous")
    own = anonymous if ram.private else rss
    return MemoryUse(
        image_shared_bytes=rss - own,
        ram_private_bytes=own,
        process_private_bytes=own + others,
    )


def _total(mappings: list[Mapping], counter: str) -> int:
    return sum(mapping.counters.get(counter, 0) for mapping in mappings)


def _inode_of(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise FileMissing(f"the RAM file {path} is gone", path=str(path)) from error


def _of_file(mappings: Iterable[Mapping], file: os.stat_result) -> list[Mapping]:
    return [each for each in mappings if (each.device, each.inode) == (file.st_dev, file.st_ino)]


def _read(pid: int, name: str) -> bytes:
    try:
        text = (_PROC / str(pid) / name).read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise VmmExited(f"pid {pid} is gone", pid=pid) from error
    except PermissionError as error:
        raise PermissionMissing(f"the memory map of pid {pid} may not be read", pid=pid) from error
    if not text:  # a zombie has no memory left
        raise VmmExited(f"pid {pid} has ended", pid=pid)
    return text
