"""From RAM and state files to a ramsnap blob, with bounded memory: holes are not read, zero pages not stored."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache.durable import write_all
from cache.extents import data_extents
from cache.host_errors import host_errors, open_regular
from cache.ramsnap.lz4_frame import compress_frame, encode_header_frame, header_frame_bytes
from cache.ramsnap.window import Window, default_threads
from spec.compatibility import Compatibility
from spec.digest import Digest, digest_from_hash, digest_of
from spec.errors import InvalidInput, InvalidSize
from spec.ramsnap import (
    BITMAP_BYTES,
    FLAG_INHERITED,
    FLAG_STATE,
    FORMAT_VERSION,
    FRAME_BYTES,
    RECORD_BYTES,
    FrameRecord,
    RamsnapHeader,
    RamsnapLimits,
    StateFile,
    encode_preamble,
    encode_record,
    frame_count,
    page_runs,
    parse_index,
)
from spec.sizes import PAGE_BYTES

Progress = Callable[[int, int], None]

_ZERO_PAGE: Final = bytes(PAGE_BYTES)
_NO_PAGES: Final = bytes(BITMAP_BYTES)
_UNLIMITED: Final = RamsnapLimits(max_memory_bytes=1 << 60, max_header_bytes=1 << 40, max_state_bytes=1 << 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What of a RAM image is to be stored: the rest is the image of another blob, ``parent``."""

    parent: Digest
    extents: Sequence[tuple[int, int]]
    """Offset and length in bytes of whole pages, in any order; pages that became zero are among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRamsnap:
    """A blob that was made. ``ram_bytes`` is the size of the RAM image, ``stored_bytes`` what of it is in the blob."""

    digest: Digest
    size_bytes: int
    header_digest: Digest
    """Of the header frame, which vouches for every other frame by its digest."""
    ram_bytes: int
    stored_bytes: int
    parent: Digest | None = None


@dataclass(frozen=True, slots=True)
class _Encoded:
    stored: bytes
    payload_bytes: int
    digest: bytes
    pages: bytes
    flags: int = 0


def encode(
    ram: Path,
    state_dir: Path,
    compatibility: Compatibility,
    out: Path,
    *,
    created: str,
    changes: Changes | None = None,
    progress: Progress = lambda _done_bytes, _of_bytes: None,
    threads: int | None = None,
    niceness: int = 0,
    stop: threading.Event | None = None,
) -> EncodedRamsnap:
    """Write the blob of a RAM image and the files in ``state_dir`` to ``out``, synced; nobody may write to them now.

    With ``changes`` the blob is a layer on another one, and only these pages of ``ram`` are looked at. ``progress`` is
    told, in the calling thread, how many bytes of the RAM are done.
    ``niceness`` is added to the priority of the compressing threads. Memory: about 20 MiB for each. When it raises,
    ``out`` is gone: InvalidSize (RAM is not a whole number of pages), InvalidInput (device state that is not plain
    files, changes that are not pages of the image), CorruptRamsnap (names or sizes of the state files are outside the
    format), NoSpace, FileMissing, HostLimit; concurrent.futures.CancelledError soon after ``stop`` is set.
    """
    ram_fd = open_regular(ram)
    try:
        with host_errors(out):
            out_fd = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            with host_errors(out):
                encoder = _Encoder(ram_fd, state_dir, compatibility, out_fd, created, changes)
                encoder.write_frames(threads or default_threads(), niceness, stop or threading.Event(), progress)
                return encoder.write_header()
        except BaseException:
            out.unlink(missing_ok=True)
            raise
        finally:
            os.close(out_fd)
    finally:
        os.close(ram_fd)


class _Encoder:
    def __init__(
        self,
        ram_fd: int,
        state_dir: Path,
        compatibility: Compatibility,
        out_fd: int,
        created: str,
        changes: Changes | None,
    ) -> None:
        self._ram_fd, self._out_fd = ram_fd, out_fd
        memory_bytes = os.fstat(ram_fd).st_size
        if not memory_bytes or memory_bytes % PAGE_BYTES:
            raise InvalidSize(f"{memory_bytes} bytes of RAM are not a whole number of pages")
        self._state_paths = sorted(state_dir.iterdir())
        if strange := [path.name for path in self._state_paths if not path.is_file()]:
            raise InvalidInput(f"device state must be plain files, {strange[0]!r} is none", path=str(state_dir))
        self._header = RamsnapHeader(
            version=FORMAT_VERSION,
            created=created,
            compatibility=compatibility,
            memory_bytes=memory_bytes,
            frame_bytes=FRAME_BYTES,
            page_bytes=PAGE_BYTES,
            state=[_describe(path) for path in self._state_paths],
            parent=changes.parent if changes else None,
        )
        self._changed = _changed_pages(changes, memory_bytes) if changes else None
        records = sum(frame_count(file.size) for file in self._header.state) + frame_count(memory_bytes)
        self._preamble = encode_preamble(self._header, records)
        self._header_frame_bytes = header_frame_bytes(len(self._preamble) + records * RECORD_BYTES)
        self._end = self._header_frame_bytes
        self._table: list[bytes] = []
        self._stored_pages_bytes = 0

    def write_frames(self, threads: int, niceness: int, stop: threading.Event, progress: Progress) -> None:
        """Everything after the header. The pool compresses ahead; this thread appends in order."""
        with Window[_Encoded](threads, niceness=niceness, name="ramsnap-encode") as window:
            for path in self._state_paths:
                with path.open("rb", buffering=0) as stream:
                    while piece := stream.read(FRAME_BYTES):
                        self._append(_compress(piece, _NO_PAGES, FLAG_STATE))
            for number, has_data in enumerate(self._ram_frames()):
                if stop.is_set():
                    raise CancelledError
                if window.full:
                    self._append(window.take())
                    progress(max(0, number - len(window)) * FRAME_BYTES, self._header.memory_bytes)
                if self._changed is not None:
                    window.submit(self._encode_changed_pages, number, self._changed.get(number, 0))
                elif has_data:
                    window.submit(self._encode_ram_frame, number)
                else:
                    window.submit(_nothing)
            while len(window):
                self._append(window.take())
            progress(self._header.memory_bytes, self._header.memory_bytes)

    def write_header(self) -> EncodedRamsnap:
        """The header frame into the place left for it, then the digest of the whole."""
        payload = self._preamble + b"".join(self._table)
        frame = encode_header_frame(payload)
        # What we write must be what a reader accepts: the reader's own checks, without the limits of a policy.
        parse_index(payload, header_frame_bytes=len(frame), limits=_UNLIMITED)
        write_all(self._out_fd, frame, 0)
        os.fsync(self._out_fd)
        os.lseek(self._out_fd, 0, os.SEEK_SET)
        with os.fdopen(self._out_fd, "rb", closefd=False) as stream:
            digest = digest_from_hash(hashlib.file_digest(stream, "sha256"))
        return EncodedRamsnap(
            digest=digest,
            size_bytes=self._end,
            header_digest=digest_of(frame),
            ram_bytes=self._header.memory_bytes,
            stored_bytes=self._stored_pages_bytes,
            parent=Digest(self._header.parent) if self._header.parent else None,
        )

    def _append(self, encoded: _Encoded) -> None:
        length, size = len(encoded.stored), encoded.payload_bytes
        record = FrameRecord(self._end, length, size, encoded.flags, encoded.digest, encoded.pages)
        self._table.append(encode_record(record))
        write_all(self._out_fd, encoded.stored, self._end)
        self._end += len(encoded.stored)
        if not record.is_state:
            self._stored_pages_bytes += encoded.payload_bytes

    def _ram_frames(self) -> Iterator[bool]:
        """For each frame of RAM, whether the file has data there."""
        memory_bytes = self._header.memory_bytes
        extents = data_extents(self._ram_fd, memory_bytes)
        start, end = next(extents, (memory_bytes, memory_bytes))
        for frame_start in range(0, memory_bytes, FRAME_BYTES):
            while end <= frame_start < memory_bytes and start < memory_bytes:
                start, end = next(extents, (memory_bytes, memory_bytes))
            yield start < frame_start + FRAME_BYTES

    def _encode_ram_frame(self, number: int) -> _Encoded:
        """In a thread of the pool."""
        start = number * FRAME_BYTES
        length = min(FRAME_BYTES, self._header.memory_bytes - start)
        content = os.pread(self._ram_fd, length, start)
        if len(content) != length:
            raise InvalidSize("the RAM file became shorter while it was read")
        payload, pages = without_zero_pages(content)
        return _compress(payload, pages) if payload else _nothing()

    def _encode_changed_pages(self, number: int, changed: int) -> _Encoded:
        """In a thread of the pool."""
        if not changed:
            return _nothing(FLAG_INHERITED)
        start, pages = number * FRAME_BYTES, changed.to_bytes(BITMAP_BYTES, "little")
        runs = [
            os.pread(self._ram_fd, count * PAGE_BYTES, start + page * PAGE_BYTES) for page, count in page_runs(pages)
        ]
        payload = runs[0] if len(runs) == 1 else b"".join(runs)
        if len(payload) != changed.bit_count() * PAGE_BYTES:
            raise InvalidSize("the RAM file became shorter while it was read")
        return _compress(payload, pages, FLAG_INHERITED)


def without_zero_pages(content: bytes) -> tuple[bytes, bytes]:
    """The non-zero pages of up to 4 MiB of RAM, joined, and their bitmap."""
    bits = 0
    for page, at in enumerate(range(0, len(content), PAGE_BYTES)):
        if not content.startswith(_ZERO_PAGE, at):  # compares in place; a slice would copy every page
            bits |= 1 << page
    pages = bits.to_bytes(BITMAP_BYTES, "little")
    if bits.bit_count() * PAGE_BYTES == len(content):
        return content, pages
    view = memoryview(content)
    runs = (view[page * PAGE_BYTES : (page + count) * PAGE_BYTES] for page, count in page_runs(pages))
    return b"".join(runs), pages


def _changed_pages(changes: Changes, memory_bytes: int) -> dict[int, int]:
    """For each 4 MiB in which something changed, the bits of the pages that did."""
    changed: dict[int, int] = {}
    for offset, length in changes.extents:
        end = offset + length
        if offset % PAGE_BYTES or length % PAGE_BYTES or not 0 <= offset < end <= memory_bytes:
            raise InvalidInput(f"{length} bytes at {offset} are no pages of an image of {memory_bytes}")
        while offset < end:
            number, at = divmod(offset, FRAME_BYTES)
            taken = min(end - offset, FRAME_BYTES - at)
            bits = ((1 << taken // PAGE_BYTES) - 1) << at // PAGE_BYTES
            changed[number] = changed.get(number, 0) | bits
            offset += taken
    return changed


def _compress(payload: bytes, pages: bytes, flags: int = 0) -> _Encoded:
    stored = compress_frame(payload)
    return _Encoded(stored, len(payload), hashlib.sha256(stored).digest(), pages, flags)


def _nothing(flags: int = 0) -> _Encoded:
    return _Encoded(b"", 0, bytes(32), _NO_PAGES, flags)


def _describe(path: Path) -> StateFile:
    with path.open("rb") as stream:
        state = hashlib.file_digest(stream, "sha256")
    return StateFile(name=path.name, size=path.stat().st_size, digest=digest_from_hash(state))
