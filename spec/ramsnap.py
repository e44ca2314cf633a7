"""The header of a ramsnap blob: its structs, its binary frame table, and the checks that bound both (spec/ramsnap.md).

A blob is a row of LZ4 frames: the header, the state files, the guest's RAM. This module knows what the header says;
how frames are coded is :mod:`cache.ramsnap`. Everything here is checked before anybody allocates by it: a parsed
:class:`RamsnapIndex` is consistent with itself and within the limits, whoever wrote it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from spec.compatibility import Compatibility
from spec.decoding import NotDecodable, from_json
from spec.digest import is_digest
from spec.errors import CorruptRamsnap, Unsupported
from spec.sizes import GIB, MIB, PAGE_BYTES

MAGIC: Final = b"OVMSRAM1"
FORMAT_VERSION: Final = 1
FRAME_BYTES: Final = 4 * MIB
"""What one frame covers: so much of the RAM image, or so much of a state file (the last one of each may be shorter)."""
PAGES_PER_FRAME: Final = FRAME_BYTES // PAGE_BYTES
BITMAP_BYTES: Final = PAGES_PER_FRAME // 8

FLAG_STATE: Final = 1
"""The frame belongs to a state file, not to RAM."""
FLAG_INHERITED: Final = 2
"""Pages that are not in the frame are the parent snapshot's, not zero."""

MAX_LAYERS: Final = 16
"""Of one snapshot, the one without a parent included: a start has to read them all."""

FRAME_OVERHEAD_BYTES: Final = 27
"""Of an LZ4 frame of one block, stored uncompressed: 15 of header, 4 of block size, 4 of end mark, 4 of checksum."""

_PREAMBLE = struct.Struct("<8sII")
"""Magic, bytes of JSON, number of frame records."""
_RECORD = struct.Struct(f"<QIIII32s{BITMAP_BYTES}s")
"""Blob offset, stored bytes, payload bytes, flags, zero, SHA-256 of the stored bytes, page bitmap."""
PREAMBLE_BYTES: Final = _PREAMBLE.size
RECORD_BYTES: Final = _RECORD.size

_STATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RamsnapLimits:
    """How much a header may claim before it is refused; in bytes, except the number of files."""

    max_memory_bytes: int = 1024 * GIB
    max_header_bytes: int = 64 * MIB
    """Payload of the header frame; a record of 184 bytes covers 4 MiB, so this is enough for more than a TiB."""
    max_state_bytes: int = GIB
    max_state_files: int = 64


DEFAULT_LIMITS: Final = RamsnapLimits()


class StateFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of device state: a plain name, its size in bytes, its sha256 digest."""

    name: str
    size: int
    digest: str


class RamsnapHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is, as JSON in the header frame; unknown members are ignored.

    ``memory_bytes`` is the size of the RAM image. ``parent`` is the digest of the blob that this one, a layer, adds to.
    """

    version: int
    created: str
    compatibility: Compatibility
    memory_bytes: int
    frame_bytes: int
    page_bytes: int
    state: list[StateFile]
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One line of the frame table. A RAM frame without a page has nothing in the blob: ``stored_bytes`` is 0."""

    offset: int
    stored_bytes: int
    payload_bytes: int
    flags: int
    digest: bytes
    """SHA-256 of the stored bytes, raw."""
    pages: bytes
    """Bit ``i % 8`` of byte ``i // 8``: page i of these 4 MiB is in the payload."""

    @property
    def is_state(self) -> bool:
        """Whether it belongs to a state file."""
        return bool(self.flags & FLAG_STATE)

    @property
    def inherits(self) -> bool:
        """Whether the pages that it does not have are the parent's."""
        return bool(self.flags & FLAG_INHERITED)


@dataclass(frozen=True, slots=True)
class RamsnapIndex:
    """A header with its frame table: the state files' frames in the header's order, then one for each 4 MiB of RAM."""

    header: RamsnapHeader
    frames: Sequence[FrameRecord]
    blob_bytes: int

    @property
    def payload_bytes(self) -> int:
        """What this blob's frames hold: pages, and state files. Without a parent it is what the image takes."""
        return sum(frame.payload_bytes for frame in self.frames)

    @property
    def ram_frames(self) -> Sequence[FrameRecord]:
        """One for each 4 MiB of RAM."""
        return self.frames[sum(frame_count(file.size) for file in self.header.state) :]


def resolved_bytes(layers: Sequence[RamsnapIndex]) -> int:
    """What the image of several layers takes at most, bottom first: pages that any of them has, and the state files."""
    first, *others = ([int.from_bytes(frame.pages, "little") for frame in layer.ram_frames] for layer in layers)
    pages = first
    for layer, own in zip(layers[1:], others, strict=True):
        pages = [
            bits | below if frame.inherits else bits
            for bits, below, frame in zip(own, pages, layer.ram_frames, strict=True)
        ]
    return sum(bits.bit_count() for bits in pages) * PAGE_BYTES + sum(file.size for file in layers[-1].header.state)


def frame_count(size_bytes: int) -> int:
    """How many frames cover so many bytes."""
    return -(-size_bytes // FRAME_BYTES)


def page_runs(pages: bytes) -> Iterator[tuple[int, int]]:
    """The runs of set bits of a page bitmap: ``(first page, number of pages)``, ascending."""
    bits, page = int.from_bytes(pages, "little"), 0
    while bits:
        skipped = (bits & -bits).bit_length() - 1
        bits >>= skipped
        count = (~bits & (bits + 1)).bit_length() - 1
        bits >>= count
        page += skipped
        yield page, count
        page += count


def encode_preamble(header: RamsnapHeader, records: int) -> bytes:
    """The payload of the header frame up to the frame table; its length depends on the lengths of strings only."""
    document = msgspec.json.encode(header)
    return _PREAMBLE.pack(MAGIC, len(document), records) + document


def encode_record(record: FrameRecord) -> bytes:
    """One record of the frame table."""
    return _RECORD.pack(
        record.offset, record.stored_bytes, record.payload_bytes, record.flags, 0, record.digest, record.pages
    )


def parse_index(payload: bytes, *, header_frame_bytes: int, limits: RamsnapLimits = DEFAULT_LIMITS) -> RamsnapIndex:
    """Read the payload of the header frame, which takes ``header_frame_bytes`` of the blob.

    Raises CorruptRamsnap for anything inconsistent or beyond the limits, Unsupported for another format version and
    other frame or page sizes.
    """
    if len(payload) > limits.max_header_bytes or len(payload) < PREAMBLE_BYTES:
        raise CorruptRamsnap(f"the header has {len(payload)} bytes, {limits.max_header_bytes} are allowed")
    magic, document_bytes, records = _PREAMBLE.unpack_from(payload)
    if magic != MAGIC:
        raise CorruptRamsnap("the blob does not start with a ramsnap header")
    table_at = PREAMBLE_BYTES + document_bytes
    if table_at + records * RECORD_BYTES != len(payload):
        raise CorruptRamsnap(f"the header has {len(payload)} bytes, its parts claim others", frames=records)
    try:
        header = from_json(payload[PREAMBLE_BYTES:table_at], RamsnapHeader)
    except NotDecodable as error:
        raise CorruptRamsnap(f"the header's JSON: {error}") from error
    _check_header(header, limits)
    frames = tuple(
        FrameRecord(offset, stored, size, flags, digest, pages)
        if not reserved
        else _corrupt(number, "has a reserved field that is not zero")
        for number, (offset, stored, size, flags, reserved, digest, pages) in enumerate(
            _RECORD.iter_unpack(memoryview(payload)[table_at:])
        )
    )
    return RamsnapIndex(header, frames, _check_frames(header, frames, header_frame_bytes))


def _check_header(header: RamsnapHeader, limits: RamsnapLimits) -> None:
    if header.version != FORMAT_VERSION:
        raise Unsupported(f"the ramsnap has format version {header.version}, {FORMAT_VERSION} is known")
    if header.parent is not None and not is_digest(header.parent):
        raise CorruptRamsnap(f"the parent {header.parent[:100]!r} is no digest")
    if (header.frame_bytes, header.page_bytes) != (FRAME_BYTES, PAGE_BYTES):
        raise Unsupported(f"the ramsnap has frames of {header.frame_bytes} and pages of {header.page_bytes} bytes")
    memory = header.memory_bytes
    if not 0 < memory <= limits.max_memory_bytes or memory % PAGE_BYTES:
        raise CorruptRamsnap(f"{memory} bytes of RAM: not a whole number of pages within {limits.max_memory_bytes}")
    for region in header.compatibility.regions:
        if min(region.image_offset, region.size_bytes, memory - region.image_offset - region.size_bytes) < 0:
            raise CorruptRamsnap(f"memory region {region.name!r} lies outside the image")
    names = [file.name for file in header.state]
    if len(names) > limits.max_state_files or len(set(names)) != len(names):
        raise CorruptRamsnap(f"{len(names)} state files: too many, or not of different names")
    for file in header.state:
        if not _STATE_NAME.fullmatch(file.name) or not is_digest(file.digest) or file.size < 0:
            raise CorruptRamsnap(f"state file {file.name[:100]!r} has no plain name, size and digest")
    if sum(file.size for file in header.state) > limits.max_state_bytes:
        raise CorruptRamsnap(f"the state files have more than {limits.max_state_bytes} bytes")


def _check_frames(header: RamsnapHeader, frames: Sequence[FrameRecord], start: int) -> int:
    """Compare every record with what it must be at its place; the end of the last frame, so the size of the blob."""
    covers = [(FLAG_STATE, size) for file in header.state for size in _pieces(file.size)]
    ram_frames = frame_count(header.memory_bytes)
    if len(frames) != len(covers) + ram_frames:
        raise CorruptRamsnap(f"the frame table has {len(frames)} records, {len(covers) + ram_frames} are needed")
    covers.extend((0, size) for size in _pieces(header.memory_bytes))
    for number, (frame, (flags, covered)) in enumerate(zip(frames, covers, strict=True)):
        if frame.flags not in ((flags, FLAG_INHERITED) if header.parent and not flags else (flags,)):
            _corrupt(number, f"has the flags {frame.flags}, which it can't have there")
        if frame.offset != start:
            _corrupt(number, f"is not where it belongs (at {frame.offset}, not {start})")
        bits = int.from_bytes(frame.pages, "little")
        if bits >> (0 if flags else covered // PAGE_BYTES):
            _corrupt(number, "has pages beyond its end")
        if frame.payload_bytes != (covered if flags else bits.bit_count() * PAGE_BYTES):
            _corrupt(number, f"has {frame.payload_bytes} bytes of payload, which its pages contradict")
        if bool(frame.stored_bytes) != bool(frame.payload_bytes):
            _corrupt(number, "is empty in one respect only")
        if frame.stored_bytes > frame.payload_bytes + FRAME_OVERHEAD_BYTES:
            _corrupt(number, f"claims {frame.stored_bytes} stored bytes for {frame.payload_bytes}")
        if not frame.stored_bytes and frame.digest != _NO_DIGEST:
            _corrupt(number, "has a digest, but no bytes")
        start += frame.stored_bytes
    return start


def _pieces(size_bytes: int) -> Iterator[int]:
    """How many bytes each of the frames covers."""
    return (min(FRAME_BYTES, size_bytes - at) for at in range(0, size_bytes, FRAME_BYTES))


def _corrupt(number: int, what: str) -> FrameRecord:
    raise CorruptRamsnap(f"frame {number} {what}", frame=number)
