"""Snapshots to encode, and blobs put together by hand, with every checksum right and one thing wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cache.ramsnap import Changes, EncodedRamsnap, encode, read_index
from cache.ramsnap.lz4_frame import encode_header_frame, header_frame_bytes
from spec.compatibility import Compatibility, MemoryRegion
from spec.digest import Digest, digest_of
from spec.ramsnap import FrameRecord, RamsnapHeader, encode_preamble, encode_record
from spec.sizes import PAGE_BYTES

CREATED = "2025-09-09T00:00:00Z"


def compatibility(memory_bytes: int) -> Compatibility:
    return Compatibility(
        runtime="qemu",
        version="7.2.0",
        machine_type="microvm",
        accelerator="tcg",
        cpu_model="max",
        memory_bytes=memory_bytes,
        cpus=1,
        regions=[MemoryRegion(name="ram", guest_address=0, image_offset=0, size_bytes=memory_bytes)],
    )


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A snapshot on disk: what :func:`encode` takes."""

    ram: Path
    state: Path

    @classmethod
    def write(
        cls, directory: Path, pages: Mapping[int, bytes], memory_bytes: int, state: Mapping[str, bytes]
    ) -> Snapshot:
        directory.mkdir(parents=True)
        with (directory / "ram").open("wb") as ram:
            ram.truncate(memory_bytes)
            for number, content in pages.items():
                ram.seek(number * PAGE_BYTES)
                ram.write(content)
        (directory / "state").mkdir()
        for name, content in state.items():
            (directory / "state" / name).write_bytes(content)
        return cls(ram=directory / "ram", state=directory / "state")

    def encode(
        self, out: Path, *, threads: int | None = None, niceness: int = 0, changes: Changes | None = None
    ) -> EncodedRamsnap:
        return encode(
            self.ram,
            self.state,
            compatibility(self.ram.stat().st_size),
            out,
            created=CREATED,
            changes=changes,
            threads=threads,
            niceness=niceness,
        )


def page_of(number: int) -> bytes:
    """A page that is easy to compress and differs from others (spec/ramsnap.md §7)."""
    return hashlib.sha256(f"page {number}".encode()).digest() * 128


def same_content(left: Path, right: Path) -> bool:
    """Whether two directory trees or files hold the same bytes under the same names."""
    if left.is_file():
        return left.read_bytes() == right.read_bytes()
    names = sorted(path.name for path in left.iterdir())
    return names == sorted(path.name for path in right.iterdir()) and all(
        same_content(left / name, right / name) for name in names
    )


@dataclass
class Blob:
    """A blob in its parts, to be changed and put together again with right offsets, digests and checksums."""

    header: RamsnapHeader
    records: list[FrameRecord]
    frames: list[bytes]

    @classmethod
    def read(cls, path: Path) -> Blob:
        index, content = read_index(path), path.read_bytes()
        frames = [content[record.offset : record.offset + record.stored_bytes] for record in index.frames]
        return cls(index.header, list(index.frames), frames)

    def replace_frame(self, number: int, stored: bytes, *, payload_bytes: int | None = None) -> None:
        """Store other bytes for a frame, and record them truthfully."""
        old = self.records[number]
        self.frames[number] = stored
        self.records[number] = FrameRecord(
            0,
            len(stored),
            old.payload_bytes if payload_bytes is None else payload_bytes,
            old.flags,
            hashlib.sha256(stored).digest(),
            old.pages,
        )

    def change_header(self, **changes: object) -> None:
        self.header = msgspec.structs.replace(self.header, **changes)

    def assemble(self, path: Path) -> Digest:
        """Write it; its digest."""
        table = list(self._table(header_frame_bytes(len(encode_preamble(self.header, 0)) + 184 * len(self.records))))
        payload = encode_preamble(self.header, len(self.records)) + b"".join(table)
        content = encode_header_frame(payload) + b"".join(self.frames)
        path.write_bytes(content)
        return digest_of(content)

    def _table(self, start: int) -> Iterable[bytes]:
        for record, stored in zip(self.records, self.frames, strict=True):
            yield encode_record(
                FrameRecord(start, record.stored_bytes, record.payload_bytes, record.flags, record.digest, record.pages)
            )
            start += len(stored)
