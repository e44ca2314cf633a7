"""The decoded form of a ramsnap: a directory with ``ram`` (sparse) and ``state/``."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from cache.durable import write_all
from cache.host_errors import host_errors
from cache.huge_tmpfs import HUGE_PAGE_BYTES, has_huge_pages
from cache.memory_map import MemoryMap
from cache.ramsnap.dense import dense_extents, joined
from spec.digest import digest_from_hash
from spec.errors import DigestMismatch
from spec.ramsnap import FRAME_BYTES, FrameRecord, RamsnapHeader, RamsnapIndex, page_runs
from spec.sizes import PAGE_BYTES

RAM_NAME = "ram"
STATE_NAME = "state"


class ImageFiles:
    """Where decoded frames go. Made for one header; several threads may write different frames."""

    def __init__(self, directory: Path, index: RamsnapIndex) -> None:
        """Create ``directory``, which must not exist, and the files in it, all holes. Raises NoSpace, HostLimit, …"""
        self._directory = directory
        self._state = directory / STATE_NAME
        self._header = header = index.header
        self._fds: list[int] = []
        self._places: list[tuple[int, int]] = []
        """Descriptor and offset in the file, by the number of the frame."""
        self._ram: MemoryMap | None = None
        """The RAM file, for frames that are decoded in place; None where the host can't do that."""
        self._dense: frozenset[int] = frozenset()
        """Offsets of what is to have huge pages."""
        with host_errors(directory):
            directory.mkdir(mode=0o700, parents=True)
        try:
            with host_errors(directory):
                self._state.mkdir(mode=0o755)
                for file in header.state:
                    self._create(self._state / file.name, file.size)
                self._create(directory / RAM_NAME, header.memory_bytes)
            self._ram = _map(self._fds[-1], header.memory_bytes)
            if self._ram is not None and has_huge_pages(directory):
                self._dense = _advised(self._ram, dense_extents(index))
        except BaseException:
            self.discard()
            raise

    def _create(self, path: Path, size_bytes: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._fds.append(fd)
        os.ftruncate(fd, size_bytes)
        self._places.extend((fd, at) for at in range(0, size_bytes, FRAME_BYTES))

    def place(self, number: int, frame: FrameRecord) -> int | None:
        """The address at which the payload of a frame is to be put, with memory behind it; or None: use :meth:`write`.

        Only RAM whose pages lie together has such a place. Raises NoSpace, HostLimit, …
        """
        if self._ram is None or frame.is_state:
            return None
        start, length = self._places[number][1], frame.payload_bytes
        first = next(page_runs(frame.pages))
        if first[1] * PAGE_BYTES != length:
            return None
        start += first[0] * PAGE_BYTES
        with host_errors(self._directory):
            return self._ram.address + start if _populated(self._ram, start, length) else None

    def write(self, number: int, frame: FrameRecord, payload: bytes | memoryview) -> None:
        """Put the payload of a frame where it belongs; absent pages stay as they are. Raises NoSpace, HostLimit, …"""
        fd, start = self._places[number]
        runs = ((0, payload),) if frame.is_state else _runs(frame.pages, payload)
        with host_errors(self._directory):
            if self._ram is not None and not frame.is_state:
                for dense in self._dense.intersection(range(start, start + FRAME_BYTES, HUGE_PAGE_BYTES)):
                    _populated(self._ram, dense, HUGE_PAGE_BYTES)
            for at, content in runs:
                write_all(fd, content, start + at)

    def finish(self) -> None:
        """Check the digests of the state files and close everything; the files stay. Raises DigestMismatch."""
        check_state(self._state, self._header)
        self._close()

    def discard(self) -> None:
        """Close and remove everything."""
        self._close()
        shutil.rmtree(self._directory)

    def _close(self) -> None:
        if self._ram is not None:
            self._ram.close()
            self._ram = None
        while self._fds:
            os.close(self._fds.pop())


def check_state(state: Path, header: RamsnapHeader) -> None:
    """Raise DigestMismatch unless the state files are what the header says."""
    for file in header.state:
        with (state / file.name).open("rb") as stream:
            actual = digest_from_hash(hashlib.file_digest(stream, "sha256"))
        if actual != file.digest:
            raise DigestMismatch(f"state file {file.name!r} has {actual}, the header says {file.digest}")


def _populated(ram: MemoryMap, start: int, length: int) -> bool:
    """Have pages there; False: the kernel can't (Linux before 5.14), and a store might be a SIGBUS. Raises OSError."""
    try:
        ram.populate(start, length, write=True)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno == errno.EFAULT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    return True


def _advised(ram: MemoryMap, extents: Iterable[int]) -> frozenset[int]:
    """Ask for huge pages; which extents are to have them."""
    advised: set[int] = set()
    with suppress(OSError):  # no more entries in the process's map, or a kernel without
        for start, length in joined(extents):
            ram.advise_huge(start, length)
            advised.update(range(start, start + length, HUGE_PAGE_BYTES))
    return frozenset(advised)


def _map(fd: int, size_bytes: int) -> MemoryMap | None:
    try:
        return MemoryMap(fd, size_bytes, writable=True)
    except OSError:  # some file systems have no shared mappings; then everything is written
        return None


def _runs(pages: bytes, payload: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Cut the payload into runs of neighbouring pages, each with its offset in the frame's 4 MiB."""
    view, taken = memoryview(payload), 0
    for page, count in page_runs(pages):
        length = count * PAGE_BYTES
        yield page * PAGE_BYTES, view[taken : taken + length]
        taken += length
