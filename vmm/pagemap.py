"""The pages that a clone made its own: found in ``/proc/PID/pagemap``, read from ``/proc/PID/mem``.

Guest RAM of a clone is a private mapping of an image. A page that it wrote to is anonymous: present or swapped, and
not a page of the file (admin-guide/mm/pagemap of the kernel: bits 63, 62 and 61). So image + own pages = its RAM, and
taking a copy of them costs what the clone dirtied, whatever the size of its RAM.

Everything here blocks: some milliseconds per GiB in use to find the pages, and what copying them takes.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spec.errors import FileMissing, InUse, MemoryNotShared, NoSpace, OvmsError, PermissionMissing, VmmExited
from spec.sizes import PAGE_BYTES
from vmm.pagemap_scan import own_ranges
from vmm.process_memory import read_ranges
from vmm.smaps import Mapping, parse_smaps

_ENTRY_BYTES = 8
_ENTRIES_AT_ONCE = 1 << 17
"""1 MiB of pagemap, half a GiB of RAM."""
_COPY_BYTES = 1 << 20

_PRESENT, _SWAPPED, _OF_FILE = 0x80, 0x40, 0x20
_IS_OWN = bytes(bool(top & (_PRESENT | _SWAPPED)) and not top & _OF_FILE for top in range(256))
"""By the top byte of a pagemap entry."""
_OWN_RUN = re.compile(rb"\x01+")


class Extent(NamedTuple):
    """A range of the RAM file, in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length


def own_extents(entries: bytes) -> Iterator[Extent]:
    """The runs of pages that belong to the process in a piece of pagemap (64 bits a page, little endian)."""
    flags = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(_IS_OWN)
    for run in _OWN_RUN.finditer(flags):
        yield Extent(run.start() * PAGE_BYTES, len(run[0]) * PAGE_BYTES)


def capture_own_pages(pid: int, ram: Path, destination: Path, *, over_image: bool = False) -> list[Extent]:
    """Copy the pages that the process does not share with the image ``ram`` to the new file ``destination``.

    That is sparse and as long as the image, each page at the offset that it has in RAM; returned is where they lie.
    ``over_image``: the destination is there already, a copy of the image, and the pages replace those that it has.
    The process must stand still meanwhile. Raises MemoryNotShared (it has no private mapping of the image), VmmExited,
    PermissionMissing, NoSpace, InUse, FileMissing; ``destination`` is not left behind by an error.
    """
    proc = Path("/proc") / str(pid)
    try:
        image = ram.stat()
        mappings = _private_mappings(proc, image)
        with (
            (proc / "pagemap").open("rb", 0) as pagemap,
            (proc / "mem").open("rb", 0) as memory,
            destination.open("r+b" if over_image else "x+b", 0) as copy,
        ):
            try:
                os.ftruncate(copy.fileno(), image.st_size)
                own = [piece for mapping in mappings for piece in _own_pieces(mapping, pagemap.fileno())]
                _copy_pieces(pid, memory.fileno(), copy.fileno(), own, image.st_size)
            except BaseException:
                destination.unlink()
                raise
    except OSError as error:
        raise _as_ours(error, pid, destination) from error
    return [extent for _, extent in own]


def complete_image(parent: Path, own: list[Extent], copy: Path) -> None:
    """Put the pages of ``parent`` between the captured ones in ``copy``, which is then the clone's whole RAM.

    Holes stay holes. Both files must be on one file system. Raises NoSpace, FileMissing; ``copy`` is then incomplete.
    """
    try:
        with parent.open("rb", 0) as source, copy.open("r+b", 0) as target:
            for gap in gaps(own, os.fstat(source.fileno()).st_size):
                for extent in _data_within(source.fileno(), gap):
                    _copy_range(source.fileno(), target.fileno(), extent)
    except FileNotFoundError as error:
        raise FileMissing(f"{error.filename} is gone", path=str(error.filename)) from error
    except OSError as error:
        raise NoSpace(f"cannot complete {copy}: {error.strerror}") from error


def gaps(extents: list[Extent], size_bytes: int) -> Iterator[Extent]:
    """What of ``size_bytes`` the extents leave out. They may touch, but not overlap."""
    start = 0
    for extent in sorted(extents):
        if extent.offset > start:
            yield Extent(start, extent.offset - start)
        start = extent.end
    if size_bytes > start:
        yield Extent(start, size_bytes - start)


def _private_mappings(proc: Path, image: os.stat_result) -> list[Mapping]:
    text = (proc / "maps").read_bytes()
    found = [each for each in parse_smaps(text) if (each.device, each.inode) == (image.st_dev, image.st_ino)]
    if not found or not all(mapping.private for mapping in found):
        raise MemoryNotShared(f"pid {proc.name} does not map its RAM image copy-on-write", mappings=len(found))
    return found


def _own_pieces(mapping: Mapping, pagemap: int) -> Iterator[tuple[int, Extent]]:
    """The address of each run of own pages, and where it lies in the RAM file."""
    ranges = own_ranges(pagemap, mapping.start, mapping.end)
    for start, end in _listed(mapping, pagemap) if ranges is None else ranges:
        yield start, Extent(start - mapping.start + mapping.offset, end - start)


def _listed(mapping: Mapping, pagemap: int) -> Iterator[tuple[int, int]]:
    """The same from the entries of all pages."""
    for start in range(mapping.start, mapping.end, _ENTRIES_AT_ONCE * PAGE_BYTES):
        pages = min(_ENTRIES_AT_ONCE, (mapping.end - start) // PAGE_BYTES)
        entries = os.pread(pagemap, pages * _ENTRY_BYTES, start // PAGE_BYTES * _ENTRY_BYTES)
        if len(entries) != pages * _ENTRY_BYTES:  # the address space is gone
            raise ProcessLookupError
        for found in own_extents(entries):
            yield start + found.offset, start + found.end


def _copy_pieces(pid: int, memory: int, copy: int, own: list[tuple[int, Extent]], size_bytes: int) -> None:
    """All at once through a mapping of the copy; one after the other if that does not work, which tells why."""
    if not own:
        return
    with mmap.mmap(copy, size_bytes) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        base = ctypes.addressof(first)
        try:
            read_ranges(pid, ((address, base + extent.offset, extent.length) for address, extent in own))
        except OSError:
            pass
        else:
            return
        finally:
            del first
    for address, extent in own:
        _copy_memory(memory, address, copy, extent)


def _copy_memory(memory: int, address: int, copy: int, extent: Extent) -> None:
    buffer = memoryview(bytearray(min(extent.length, _COPY_BYTES)))
    done = 0
    while done < extent.length:
        read = os.preadv(memory, [buffer[: extent.length - done]], address + done)
        if not read:
            raise ProcessLookupError
        written = 0
        while written < read:
            written += os.pwrite(copy, buffer[written:read], extent.offset + done + written)
        done += read


def _data_within(source: int, gap: Extent) -> Iterator[Extent]:
    """The parts of a gap where the file is not a hole."""
    end = gap.offset
    while end < gap.end:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but hole up to the end of the file
                return
            raise
        if start >= gap.end:
            return
        end = min(os.lseek(source, start, os.SEEK_HOLE), gap.end)
        yield Extent(start, end - start)


def _copy_range(source: int, target: int, extent: Extent) -> None:
    done = 0
    while done < extent.length:
        offset = extent.offset + done
        copied = os.copy_file_range(source, target, extent.length - done, offset, offset)
        if not copied:
            raise OSError(errno.EIO, "the file was cut short")
        done += copied


def _as_ours(error: OSError, pid: int, destination: Path) -> OvmsError:
    match error.errno:
        case errno.ESRCH:
            return VmmExited(f"pid {pid} is gone", pid=pid)
        case errno.ENOENT if str(error.filename).startswith("/proc/"):
            return VmmExited(f"pid {pid} is gone", pid=pid)
        case errno.ENOENT:
            return FileMissing(f"{error.filename} is not there", path=str(error.filename))
        case errno.EEXIST:
            return InUse(f"{destination} exists already")
        case errno.EACCES | errno.EPERM:
            return PermissionMissing(
                f"the memory of pid {pid} may not be read: {error.strerror}",
                remedy="Run the daemon as root, or allow it to trace what it started (kernel.yama.ptrace_scope).",
            )
        case _:
            return NoSpace(f"cannot copy the changed pages to {destination}: {error.strerror}")
