"""The on-disk shapes of a qcow2 header that reading and writing share."""

from __future__ import annotations

import struct
from typing import Final, Literal

from spec.errors import UnsafeDisk

MAGIC: Final = b"QFI\xfb"
MAX_NAME_BYTES: Final = 1023
"""Longest backing file name that the format allows."""

V2_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
"""magic, version, backing offset and length, cluster bits, size, encryption method, L1 entries and offset,
refcount table offset and clusters, internal snapshots and their offset."""
V3_TAIL: Final = struct.Struct(">QQQII")
"""incompatible, compatible and autoclear features, refcount order, header length."""
V3_HEADER_BYTES: Final = V2_HEADER.size + V3_TAIL.size
POINTER_BYTES: Final = 8
SECTOR_BYTES: Final = 512
"""A disk has whole ones."""
EXTENSION: Final = struct.Struct(">II")
"""Type and length of a header extension; its data follows, padded to 8 bytes."""
EXT_END: Final = 0
EXT_BACKING_FORMAT: Final = 0xE2792ACA

BackingFormat = Literal["qcow2", "raw"]


def extension_area(extensions: list[tuple[int, bytes]]) -> bytes:
    """Encode header extensions, with the end marker."""
    parts = [
        EXTENSION.pack(kind, len(data)) + data.ljust(ceil_div(len(data), 8) * 8, b"\0") for kind, data in extensions
    ]
    return b"".join([*parts, EXTENSION.pack(EXT_END, 0)])


def encode_name(name: str) -> bytes:
    """A backing file name as it stands in the header. Raises UnsafeDisk if it can't."""
    encoded = name.encode() if name.isprintable() else b""
    if not 0 < len(encoded) <= MAX_NAME_BYTES:
        raise UnsafeDisk(
            f"{name[:100]!r} can't be a backing file name: up to {MAX_NAME_BYTES} bytes, no control characters",
            remedy="Choose a shorter path for --root.",
        )
    return encoded


def ceil_div(amount: int, unit: int) -> int:
    """How many units hold the amount."""
    return -(-amount // unit)
