from __future__ import annotations

import random
import struct
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.compatibility import Compatibility, MemoryRegion
from spec.digest import digest_of
from spec.errors import CorruptRamsnap, OvmsError
from spec.ramsnap import (
    FLAG_INHERITED,
    FLAG_STATE,
    FRAME_BYTES,
    FRAME_OVERHEAD_BYTES,
    RECORD_BYTES,
    FrameRecord,
    RamsnapHeader,
    RamsnapIndex,
    StateFile,
    encode_preamble,
    encode_record,
    page_runs,
    parse_index,
)
from spec.sizes import PAGE_BYTES

START = 1000
MEMORY_BYTES = FRAME_BYTES + 3 * PAGE_BYTES


def header(**changes: Any) -> RamsnapHeader:
    made = RamsnapHeader(
        version=1,
        created="2025-09-09T00:00:00Z",
        compatibility=Compatibility(
            runtime="qemu",
            version="7.2.0",
            machine_type="microvm",
            accelerator="tcg",
            cpu_model="max",
            memory_bytes=MEMORY_BYTES,
            cpus=1,
            regions=[MemoryRegion(name="ram", guest_address=0, image_offset=0, size_bytes=MEMORY_BYTES)],
        ),
        memory_bytes=MEMORY_BYTES,
        frame_bytes=FRAME_BYTES,
        page_bytes=PAGE_BYTES,
        state=[StateFile(name="device", size=10, digest=digest_of(b""))],
    )
    return msgspec.structs.replace(made, **changes)


def bitmap(*pages: int) -> bytes:
    return sum(1 << page for page in pages).to_bytes(128, "little")


def records() -> list[FrameRecord]:
    """A state file of 10 bytes, 4 MiB with two pages, three pages of which the last is there."""
    return [
        FrameRecord(START, 37, 10, FLAG_STATE, b"\1" * 32, bitmap()),
        FrameRecord(START + 37, 500, 2 * PAGE_BYTES, 0, b"\2" * 32, bitmap(0, 1023)),
        FrameRecord(START + 537, 60, PAGE_BYTES, 0, b"\3" * 32, bitmap(2)),
    ]


def parse(header: RamsnapHeader, records: list[FrameRecord]) -> RamsnapIndex:
    payload = encode_preamble(header, len(records)) + b"".join(map(encode_record, records))
    return parse_index(payload, header_frame_bytes=START)


def test_what_is_written_is_read() -> None:
    index = parse(header(), records())
    assert (index.header, list(index.frames)) == (header(), records())
    assert index.blob_bytes == START + 597
    assert index.payload_bytes == 10 + 3 * PAGE_BYTES


def test_the_length_does_not_depend_on_the_table() -> None:
    assert len(encode_preamble(header(), 0)) == len(encode_preamble(header(), 1 << 31))
    assert {len(encode_record(record)) for record in records()} == {RECORD_BYTES}


WRONG: dict[str, tuple[int, dict[str, Any]]] = {
    "gap": (1, {"offset": START + 38}),
    "overlap": (1, {"offset": START + 36}),
    "before the header": (0, {"offset": 0}),
    "beyond everything": (2, {"offset": (1 << 64) - 1}),
    "state in RAM": (1, {"flags": FLAG_STATE}),
    "RAM in state": (0, {"flags": 0}),
    "unknown flag": (1, {"flags": 4}),
    "state payload": (0, {"payload_bytes": 11}),
    "RAM payload": (1, {"payload_bytes": PAGE_BYTES}),
    "pages without payload": (1, {"payload_bytes": 0, "stored_bytes": 0}),
    "payload without pages": (1, {"pages": bitmap()}),
    "a page more": (1, {"pages": bitmap(0, 1, 1023)}),
    "page beyond the end": (2, {"pages": bitmap(3)}),
    "state with pages": (0, {"pages": bitmap(0)}),
    "payload not stored": (1, {"stored_bytes": 0}),
    "stored without payload": (2, {"payload_bytes": 0, "pages": bitmap()}),
    "too much stored": (2, {"stored_bytes": PAGE_BYTES + FRAME_OVERHEAD_BYTES + 1}),
    "digest of nothing": (2, {"payload_bytes": 0, "stored_bytes": 0, "pages": bitmap()}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_records_that_are_not_what_belongs_there(kind: str) -> None:
    number, changes = WRONG[kind]
    wrong = records()
    wrong[number] = replace(wrong[number], **changes)
    with pytest.raises(CorruptRamsnap, match=r"frame \d"):
        parse(header(), wrong)


def layer() -> list[FrameRecord]:
    """A state file, 4 MiB of which two pages changed, three pages that are the parent's."""
    state, changed, rest = records()
    return [
        state,
        replace(changed, flags=FLAG_INHERITED),
        replace(rest, flags=FLAG_INHERITED, stored_bytes=0, payload_bytes=0, digest=bytes(32), pages=bitmap()),
    ]


def test_a_layer_has_a_parent() -> None:
    index = parse(header(parent=digest_of(b"parent")), layer())
    assert [frame.inherits for frame in index.frames] == [False, True, True]
    assert index.payload_bytes == 10 + 2 * PAGE_BYTES
    parse(header(parent=digest_of(b"parent")), records())  # whole frames are fine in a layer
    with pytest.raises(CorruptRamsnap, match="frame 1 has the flags 2"):
        parse(header(), layer())


def test_state_is_not_inherited() -> None:
    wrong = layer()
    wrong[0] = replace(wrong[0], flags=FLAG_STATE | FLAG_INHERITED)
    with pytest.raises(CorruptRamsnap, match="frame 0 has the flags 3"):
        parse(header(parent=digest_of(b"parent")), wrong)


@pytest.mark.parametrize("parent", ["", "parent", "sha256:" + "g" * 64, digest_of(b"") + "\n"])
def test_a_parent_is_a_digest(parent: str) -> None:
    with pytest.raises(CorruptRamsnap, match="parent"):
        parse(header(parent=parent), layer())


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_records(count: int) -> None:
    with pytest.raises(CorruptRamsnap, match="records"):
        parse(header(), [*records(), records()[2]][:count])


@pytest.mark.parametrize("offset", [-1, PAGE_BYTES, 1 << 63])
def test_regions_lie_within_the_image(offset: int) -> None:
    region = MemoryRegion(name="high", guest_address=1 << 32, image_offset=offset, size_bytes=MEMORY_BYTES)
    compatibility = msgspec.structs.replace(header().compatibility, regions=[region])
    with pytest.raises(CorruptRamsnap, match="high"):
        parse(header(compatibility=compatibility), records())


def test_state_names_are_different() -> None:
    with pytest.raises(CorruptRamsnap, match="names"):
        parse(header(state=[*header().state, *header().state]), records())


def test_a_state_size_is_not_negative_and_not_huge() -> None:
    for size in (-1, 1 << 62):
        with pytest.raises(CorruptRamsnap):
            parse(header(state=[StateFile(name="device", size=size, digest=digest_of(b""))]), records())


def test_the_reserved_field_is_zero() -> None:
    payload = bytearray(encode_preamble(header(), 3) + b"".join(map(encode_record, records())))
    payload[-RECORD_BYTES + 20] = 1
    with pytest.raises(CorruptRamsnap, match="reserved"):
        parse_index(bytes(payload), header_frame_bytes=START)


@pytest.mark.parametrize("document", [b"", b"{}", b"[1]", b'{"version":"1"}', b'{"x":"\xff"}', b"[" * 9000])
def test_json_that_is_none_or_of_another_shape(document: bytes) -> None:
    payload = b"OVMSRAM1" + struct.pack("<II", len(document), 0) + document
    with pytest.raises(CorruptRamsnap, match="JSON"):
        parse_index(payload, header_frame_bytes=START)


@given(st.data())
def test_no_change_of_a_header_is_anything_but_refused_or_consistent(data: st.DataObject) -> None:
    payload = bytearray(encode_preamble(header(), 3) + b"".join(map(encode_record, records())))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    del payload[data.draw(st.one_of(st.just(len(payload)), st.integers(0, len(payload)))) :]
    try:
        index = parse_index(bytes(payload), header_frame_bytes=START)
    except OvmsError:
        return
    assert index.blob_bytes == START + sum(frame.stored_bytes for frame in index.frames)
    assert index.payload_bytes <= index.header.memory_bytes + sum(file.size for file in index.header.state)


@given(st.integers(0, (1 << 1024) - 1), st.randoms(use_true_random=False))
def test_runs_cover_the_set_bits(bits: int, rng: random.Random) -> None:
    bits &= rng.getrandbits(1024) | rng.getrandbits(1024)
    runs = list(page_runs(bits.to_bytes(128, "little")))
    assert sum(((1 << count) - 1) << page for page, count in runs) == bits
    assert all(page + count < following for (page, count), (following, _) in pairwise(runs))
