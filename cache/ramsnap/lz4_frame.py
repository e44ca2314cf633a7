"""The two kinds of LZ4 frames that a ramsnap is made of, coded and checked (LZ4 frame format 1.6, §General Structure).

A *data frame* holds at most 4 MiB, compressed. The *header frame* holds uncompressed blocks only: its length follows
from the length of its content, so that it can be written last into a place reserved first.

Coding is python-lz4's; decoding is ours, block by block into memory that is there already, because python-lz4 decodes
into fresh ``bytes`` only, takes the first frame of several in silence, and lets a truncated frame pass.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

import lz4.frame

from cache.ramsnap.buffer import Buffer
from cache.ramsnap.liblz4 import decompress_block, xxh32, xxh32_of
from spec.errors import CorruptRamsnap
from spec.ramsnap import FRAME_BYTES
from spec.sizes import KIB, MIB

_MAGIC: Final = 0x184D2204
_FLG: Final = 0x6C
"""Version 1, independent blocks, no block checksum, content size, content checksum, no dictionary."""
_BLOCK_BYTES: Final = {0x40: 64 * KIB, 0x50: 256 * KIB, 0x60: MIB, 0x70: 4 * MIB}
"""Maximum block size by the BD byte."""
_BD_4_MIB: Final = 0x70
_STORED: Final = 1 << 31
"""Bit of a block's size: the block is not compressed."""

_DESCRIPTOR = struct.Struct("<IBBQB")
"""Magic, FLG, BD, content size, header checksum."""
DESCRIPTOR_BYTES: Final = _DESCRIPTOR.size
_U32 = struct.Struct("<I")


def compress_frame(payload: bytes | memoryview) -> bytes:
    """A data frame of 1 byte to 4 MiB: one block, level 0 (fast). Releases the GIL."""
    frame: bytes = lz4.frame.compress(
        payload,
        compression_level=0,
        block_size=lz4.frame.BLOCKSIZE_MAX4MB,
        block_linked=False,
        content_checksum=True,
        store_size=True,
    )
    return frame


def decode_frame(source: Buffer, length: int, payload_bytes: int, to: int) -> None:
    """Decode a data frame, the first ``length`` bytes of ``source``, to the address ``to``, without the GIL.

    It must have ``payload_bytes`` (at most 4 MiB), be complete, and be all there is. Each block must make as much as it
    may, or all that is left: a frame of a million tiny blocks would be decoded a million times as slowly.
    Raises CorruptRamsnap. Never writes more than ``payload_bytes``, whatever the frame says.
    """
    frame = source.view[:length]
    block_bytes = _check_descriptor(frame, payload_bytes)
    at, made = DESCRIPTOR_BYTES, 0
    while made < payload_bytes:
        stored = _word(frame, at)
        at += _U32.size
        size, room = stored & ~_STORED, min(block_bytes, payload_bytes - made)
        if not 0 < size <= min(block_bytes, length - at):
            raise CorruptRamsnap(f"an LZ4 block claims {size} bytes")
        if stored & _STORED:
            if size == room:
                ctypes.memmove(to + made, source.address + at, size)
            decoded = size
        else:
            decoded = decompress_block(source.address + at, size, to + made, room)
        if decoded != room:
            raise CorruptRamsnap(f"an LZ4 block is malformed, or does not have {room} bytes of content")
        at += size
        made += room
    if _word(frame, at) != 0 or length != at + 2 * _U32.size:
        raise CorruptRamsnap(f"an LZ4 frame does not end where it must, after {payload_bytes} bytes of content")
    if _word(frame, at + _U32.size) != xxh32(to, payload_bytes):
        raise CorruptRamsnap("the checksum of an LZ4 frame does not hold")


def _word(frame: memoryview, at: int) -> int:
    if at + _U32.size > len(frame):
        raise CorruptRamsnap("an LZ4 frame ends too early")
    word: int = _U32.unpack_from(frame, at)[0]
    return word


def header_frame_bytes(payload_bytes: int) -> int:
    """The encoded length of a header frame with so much content."""
    return DESCRIPTOR_BYTES + payload_bytes + _U32.size * (-(-payload_bytes // FRAME_BYTES) + 2)


def encode_header_frame(payload: bytes) -> bytes:
    """A frame of uncompressed blocks, ``header_frame_bytes(len(payload))`` long."""
    parts: list[bytes | memoryview] = [_descriptor(len(payload))]
    view = memoryview(payload)
    for at in range(0, len(payload), FRAME_BYTES):
        block = view[at : at + FRAME_BYTES]
        parts += [_U32.pack(_STORED | len(block)), block]
    parts += [_U32.pack(0), _content_checksum(payload)]
    return b"".join(parts)


def header_payload_bytes(descriptor: bytes) -> int:
    """How much content a header frame claims, from its first ``DESCRIPTOR_BYTES``. Raises CorruptRamsnap."""
    size_bytes: int = _DESCRIPTOR.unpack(descriptor)[3]
    if descriptor != _descriptor(size_bytes):
        raise CorruptRamsnap("the blob does not start with the LZ4 frame of a ramsnap header")
    return size_bytes


def decode_header_frame(frame: bytes) -> bytes:
    """The content of a complete header frame. Raises CorruptRamsnap."""
    size_bytes = header_payload_bytes(frame[:DESCRIPTOR_BYTES])
    if len(frame) != header_frame_bytes(size_bytes):
        raise CorruptRamsnap("the header frame is longer or shorter than its content")
    blocks, at = [], DESCRIPTOR_BYTES
    for start in range(0, size_bytes, FRAME_BYTES):
        length = min(FRAME_BYTES, size_bytes - start)
        if _U32.unpack_from(frame, at)[0] != _STORED | length:
            raise CorruptRamsnap("the header frame has a block that is not uncompressed and as long as it can be")
        blocks.append(frame[at + _U32.size : at + _U32.size + length])
        at += _U32.size + length
    payload = b"".join(blocks)
    if frame[at:] != _U32.pack(0) + _content_checksum(payload):
        raise CorruptRamsnap("the header frame's checksum does not hold")
    return payload


def _check_descriptor(frame: memoryview, payload_bytes: int) -> int:
    """The maximum block size, after checking that the frame is of our kind and claims the right content size."""
    if len(frame) < DESCRIPTOR_BYTES:
        raise CorruptRamsnap("an LZ4 frame is too short")
    magic, flg, bd, content_bytes, _checksum = _DESCRIPTOR.unpack_from(frame)
    if magic != _MAGIC or flg != _FLG or bd not in _BLOCK_BYTES:
        raise CorruptRamsnap("an LZ4 frame is not independent with content size and checksum")
    if content_bytes != payload_bytes or payload_bytes > FRAME_BYTES:
        raise CorruptRamsnap(f"an LZ4 frame claims {content_bytes} bytes of content, the header {payload_bytes}")
    if frame[:DESCRIPTOR_BYTES] != _descriptor(content_bytes, bd):
        raise CorruptRamsnap("the checksum of an LZ4 frame's header does not hold")
    return _BLOCK_BYTES[bd]


def _descriptor(content_bytes: int, bd: int = _BD_4_MIB) -> bytes:
    fields = struct.pack("<BBQ", _FLG, bd, content_bytes)
    return _U32.pack(_MAGIC) + fields + bytes([xxh32_of(fields) >> 8 & 0xFF])


def _content_checksum(content: bytes) -> bytes:
    """xxh32 of the content, little-endian."""
    return _U32.pack(xxh32_of(content))
