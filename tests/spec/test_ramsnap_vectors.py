"""Reads spec/vectors with nothing but what spec/ramsnap.md and the LZ4 documents say: no code of ours, no library."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

DIRECTORY = Path(__file__).parents[2] / "spec" / "vectors"
VECTORS: list[dict[str, Any]] = json.loads((DIRECTORY / "vectors.json").read_text())
MASK = 0xFFFFFFFF
P1, P2, P3, P4, P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393


def rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & MASK


def xxh32(data: bytes) -> int:
    at, lanes = 0, [(P1 + P2) & MASK, P2, 0, -P1 & MASK]
    while len(data) - at >= 16:
        for lane, word in enumerate(struct.unpack_from("<4I", data, at)):
            lanes[lane] = rotate((lanes[lane] + word * P2) & MASK, 13) * P1 & MASK
        at += 16
    value = sum(map(rotate, lanes, (1, 7, 12, 18))) & MASK if at else P5
    value = (value + len(data)) & MASK
    while len(data) - at >= 4:
        value = rotate((value + struct.unpack_from("<I", data, at)[0] * P3) & MASK, 17) * P4 & MASK
        at += 4
    for byte in data[at:]:
        value = rotate((value + byte * P5) & MASK, 11) * P1 & MASK
    value = (value ^ value >> 15) * P2 & MASK
    value = (value ^ value >> 13) * P3 & MASK
    return value ^ value >> 16


def lz4_block(block: bytes) -> bytes:
    out, at = bytearray(), 0

    def length(nibble: int) -> int:
        nonlocal at
        if nibble == 15:
            while True:
                at += 1
                nibble += block[at - 1]
                if block[at - 1] != 255:
                    break
        return nibble

    while True:
        token = block[at]
        at += 1
        literals = length(token >> 4)
        out += block[at : at + literals]
        at += literals
        if at == len(block):
            return bytes(out)
        back = block[at] | block[at + 1] << 8
        at += 2
        assert 0 < back <= len(out)
        for _ in range(length(token & 15) + 4):
            out.append(out[-back])


def lz4_frame(frame: bytes) -> bytes:
    magic, flags, size_class, content_bytes, check = struct.unpack_from("<IBBQB", frame)
    assert (magic, flags) == (0x184D2204, 0x6C)
    assert size_class in (0x40, 0x50, 0x60, 0x70)
    assert check == xxh32(frame[4:14]) >> 8 & 0xFF
    at, content = 15, b""
    while size := struct.unpack_from("<I", frame, at)[0]:
        block = frame[at + 4 : at + 4 + (size & 0x7FFFFFFF)]
        content += block if size >> 31 else lz4_block(block)
        at += 4 + len(block)
    assert struct.unpack_from("<I", frame, at + 4)[0] == xxh32(content)
    assert (len(frame), len(content)) == (at + 8, content_bytes)
    return content


def test_the_hash_is_xxh32() -> None:
    assert xxh32(b"") == 0x02CC5D05
    assert xxh32(b"Nobody inspects the spammish repetition") == 0xE2293B2F


def page_with(text: str | None) -> bytes:
    return bytes(4096) if text is None else hashlib.sha256(text.encode()).digest() * 128


def image_of(name: str) -> bytearray:
    """The RAM image of a vector, put together from all its layers."""
    blob = (DIRECTORY / f"{name}.ramsnap").read_bytes()
    json_bytes, count = struct.unpack_from("<II", blob, 19 + 8)
    facts = json.loads(blob[19 + 16 : 19 + 16 + json_bytes])
    below = [each["name"] for each in VECTORS if each["digest"] == facts["parent"]]
    ram = image_of(below[0]) if below else bytearray(facts["memory_bytes"])
    number = 0
    for at in range(19 + 16 + json_bytes, 19 + 16 + json_bytes + 184 * count, 184):
        offset, stored, _, flags, _, _, bitmap = struct.unpack_from("<QIIII32s128s", blob, at)
        if flags & 1:
            continue
        content, taken = lz4_frame(blob[offset : offset + stored]) if stored else b"", 0
        for page in range(number * 1024, min(number * 1024 + 1024, len(ram) // 4096)):
            if bitmap[page % 1024 // 8] >> page % 8 & 1:
                ram[page * 4096 : page * 4096 + 4096] = content[taken : taken + 4096]
                taken += 4096
            elif not flags & 2:
                ram[page * 4096 : page * 4096 + 4096] = bytes(4096)
        number += 1
    return ram


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
def test_vector(vector: dict[str, Any]) -> None:
    blob = (DIRECTORY / f"{vector['name']}.ramsnap").read_bytes()
    assert "sha256:" + hashlib.sha256(blob).hexdigest() == vector["digest"]
    assert len(blob) == vector["size"]

    content_bytes = struct.unpack_from("<Q", blob, 6)[0]
    header_frame = blob[: content_bytes + 4 * -(-content_bytes // (4 << 20)) + 23]
    assert header_frame[5] == 0x70
    assert "sha256:" + hashlib.sha256(header_frame).hexdigest() == vector["header_digest"]
    header = lz4_frame(header_frame)
    assert header[:8] == b"OVMSRAM1"
    json_bytes, count = struct.unpack_from("<II", header, 8)
    assert len(header) == 16 + json_bytes + 184 * count
    facts = json.loads(header[16 : 16 + json_bytes])
    assert {**facts, "state": [file["name"] for file in facts["state"]]} == {
        "version": 1,
        "created": vector["created"],
        "compatibility": vector["compatibility"],
        "memory_bytes": vector["memory_bytes"],
        "frame_bytes": 4194304,
        "page_bytes": 4096,
        "state": sorted(vector["state"]),
        "parent": next((each["digest"] for each in VECTORS if each["name"] == vector.get("parent")), None),
    }

    state, stored_pages, end, number = b"", {}, len(header_frame), 0
    for at in range(16 + json_bytes, len(header), 184):
        offset, stored, payload, flags, zero, digest, bitmap = struct.unpack_from("<QIIII32s128s", header, at)
        assert (offset, zero) == (end, 0)
        end += stored
        assert digest == (hashlib.sha256(blob[offset:end]).digest() if stored else bytes(32))
        content = lz4_frame(blob[offset:end]) if stored else b""
        assert len(content) == payload
        if flags == 1:
            state += content
            continue
        assert flags == (2 if "parent" in vector else 0)
        present = [number * 1024 + i for i in range(1024) if bitmap[i // 8] >> i % 8 & 1]
        for i, page in enumerate(present):
            stored_pages[page] = content[i * 4096 : i * 4096 + 4096]
        assert payload == 4096 * len(present)
        number += 1
    assert end == len(blob)
    texts = vector.get("changed") or {str(page): f"page {page}" for page in vector["pages"]}
    assert stored_pages == {int(page): page_with(text) for page, text in texts.items()}
    ram = image_of(vector["name"])
    assert "sha256:" + hashlib.sha256(ram).hexdigest() == vector["ram_digest"]
    assert [at // 4096 for at in range(0, len(ram), 4096) if any(ram[at : at + 4096])] == vector["pages"]
    for file in facts["state"]:
        text = vector["state"][file["name"]].encode()
        assert (file["size"], file["digest"]) == (len(text), "sha256:" + hashlib.sha256(text).hexdigest())
        assert state[: len(text)] == text
        state = state[len(text) :]
    assert state == b""
