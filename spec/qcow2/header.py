"""Parse qcow2 headers that may be hostile, and rename the backing file in one."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Literal

from spec.errors import UnsafeDisk
from spec.manifest import MAX_DISK_BYTES
from spec.qcow2.layout import (
    EXT_BACKING_FORMAT,
    EXT_END,
    EXTENSION,
    MAGIC,
    MAX_NAME_BYTES,
    POINTER_BYTES,
    SECTOR_BYTES,
    V2_HEADER,
    V3_HEADER_BYTES,
    V3_TAIL,
    BackingFormat,
    ceil_div,
    encode_name,
    extension_area,
)

HEAD_BYTES: Final = 64 * 1024
"""How much of an image's start :func:`parse_header` wants to see; a shorter file is given whole."""

_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION_TYPE, _EXTENDED_L2 = (1 << bit for bit in range(5))
_EXT_FEATURE_NAMES, _EXT_EXTERNAL_DATA, _EXT_ENCRYPTION = 0x6803F857, 0x44415441, 0x0537BE77

_MIN_CLUSTER_BITS, _MAX_CLUSTER_BITS = 9, 21
_MAX_L1_BYTES = 32 << 20
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20
_MAX_REFCOUNT_ORDER = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2Header:
    """What of a header matters to us; everything else was checked and is of no further interest."""

    version: Literal[2, 3]
    cluster_bytes: int
    virtual_size_bytes: int
    backing_name: str | None
    backing_format: str | None
    """As the header extension says; None: none there, so that a reader would guess."""
    dirty: bool
    """Refcounts may be stale: harmless to readers, repaired by the next writer."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the variable parts of the first cluster lie."""

    extensions: tuple[tuple[int, bytes], ...]
    header_bytes: int
    end: int
    """First byte behind extensions and backing name."""


def parse_header(head: bytes) -> Qcow2Header:
    """Parse the start of an image (:data:`HEAD_BYTES` of it, or all if it is shorter).

    Raises UnsafeDisk for anything that is not a sound qcow2 v2 or v3 header, and for what no layer may use:
    external data file, encryption, internal snapshots, features that one of the two runtimes can't read, and an image
    marked corrupt. Never raises anything else, whatever the bytes.
    """
    return _parse(head)[0]


def is_qcow2(head: bytes) -> bool:
    """Whether a program that guesses formats would take this for a qcow2 image."""
    return head[:4] == MAGIC


def rewrite_backing(head: bytes, name: str, backing_format: BackingFormat) -> bytes:
    """The bytes to write over the start of an image so that it names another backing file, with its format.

    The old name is wiped. Raises UnsafeDisk if the image has no backing file, if ``head`` does not parse, or if the
    name does not fit into the first cluster.
    """
    header, layout = _parse(head)
    if header.backing_name is None:
        raise UnsafeDisk("the image has no backing file to rename")
    kept = [each for each in layout.extensions if each[0] != EXT_BACKING_FORMAT]
    area = extension_area([(EXT_BACKING_FORMAT, backing_format.encode()), *kept])
    encoded = encode_name(name)
    if layout.header_bytes + len(area) + len(encoded) > header.cluster_bytes:
        # Tiny clusters: the table of feature names is for people, the image means the same without it.
        kept = [each for each in kept if each[0] != _EXT_FEATURE_NAMES]
        area = extension_area([(EXT_BACKING_FORMAT, backing_format.encode()), *kept])
    offset = layout.header_bytes + len(area)
    if offset + len(encoded) > min(header.cluster_bytes, HEAD_BYTES):
        raise UnsafeDisk(f"a backing name of {len(encoded)} bytes does not fit into the image's first cluster")
    start = bytearray(head[: layout.header_bytes] + area + encoded)
    struct.pack_into(">QI", start, 8, offset, len(encoded))
    return bytes(start.ljust(layout.end, b"\0"))


def _parse(head: bytes) -> tuple[Qcow2Header, _Layout]:
    if not is_qcow2(head):
        raise UnsafeDisk("not a qcow2 image: the magic number is missing")
    if len(head) < V2_HEADER.size:
        raise UnsafeDisk(f"a qcow2 header has at least {V2_HEADER.size} bytes, here are {len(head)}")
    (
        _, version, backing_offset, backing_bytes, cluster_bits, size, crypt_method,
        l1_entries, l1_offset, refcount_offset, refcount_clusters, snapshots, _,
    ) = V2_HEADER.unpack_from(head)  # fmt: skip
    if version not in (2, 3):
        raise UnsafeDisk(f"qcow2 version {version}; known are 2 and 3")
    if not _MIN_CLUSTER_BITS <= cluster_bits <= _MAX_CLUSTER_BITS:
        raise UnsafeDisk(
            f"clusters of 2^{cluster_bits} bytes; allowed are 2^{_MIN_CLUSTER_BITS} to 2^{_MAX_CLUSTER_BITS}"
        )
    if not 0 < size <= MAX_DISK_BYTES or size % SECTOR_BYTES:
        raise UnsafeDisk(f"a virtual size of {size} bytes; allowed are whole sectors, up to {MAX_DISK_BYTES} bytes")
    if crypt_method != 0:
        raise UnsafeDisk(f"the image is encrypted (method {crypt_method})")
    if snapshots:
        raise UnsafeDisk(f"the image has {snapshots} internal snapshots: convert it with 'qemu-img convert' first")
    cluster = 1 << cluster_bits
    header_bytes, features = V2_HEADER.size, 0
    if version == 3:
        header_bytes, features = _check_v3(head, cluster)
    _check_table("L1 table", l1_offset, l1_entries * POINTER_BYTES, cluster, _MAX_L1_BYTES)
    if l1_entries < ceil_div(size, cluster * (cluster // POINTER_BYTES)):
        raise UnsafeDisk(f"an L1 table of {l1_entries} entries is too small for {size} bytes")
    if not refcount_clusters:
        raise UnsafeDisk("the image has no refcount table")
    _check_table("refcount table", refcount_offset, refcount_clusters * cluster, cluster, _MAX_REFCOUNT_TABLE_BYTES)

    limit = min(cluster, len(head))
    name = _backing_name(head, backing_offset, backing_bytes, header_bytes, limit)
    extensions = _extensions(head, header_bytes, backing_offset or limit)
    end = max(backing_offset + backing_bytes, header_bytes + len(extension_area(extensions)))
    formats = [data for kind, data in extensions if kind == EXT_BACKING_FORMAT]
    if len(formats) > 1 or any(len(each) > 15 or not each.isascii() for each in formats):
        raise UnsafeDisk("the backing format in the header makes no sense")
    header = Qcow2Header(
        version=version,
        cluster_bytes=cluster,
        virtual_size_bytes=size,
        backing_name=name,
        backing_format=formats[0].decode() if formats and name is not None else None,
        dirty=bool(features & _DIRTY),
    )
    return header, _Layout(tuple(extensions), header_bytes, min(end, limit))


def _check_v3(head: bytes, cluster: int) -> tuple[int, int]:
    """Length of a v3 header, and its incompatible features."""
    if len(head) < V3_HEADER_BYTES:
        raise UnsafeDisk(f"a qcow2 v3 header has at least {V3_HEADER_BYTES} bytes, here are {len(head)}")
    features, _, _, refcount_order, header_bytes = V3_TAIL.unpack_from(head, V2_HEADER.size)
    if features & _EXTERNAL_DATA:
        raise UnsafeDisk("the image keeps its data in an external file")
    if features & _CORRUPT:
        raise UnsafeDisk("the image is marked corrupt", remedy="Repair it with 'qemu-img check -r all' first.")
    if features & _EXTENDED_L2:
        raise UnsafeDisk("the image has extended L2 entries, which not every runtime reads")
    if unknown := features & ~(_DIRTY | _COMPRESSION_TYPE):
        raise UnsafeDisk(f"the image has unknown incompatible features {unknown:#x}")
    if not V3_HEADER_BYTES <= header_bytes <= min(cluster, len(head)) or header_bytes % 8:
        raise UnsafeDisk(f"a header length of {header_bytes} bytes makes no sense")
    if features & _COMPRESSION_TYPE and (header_bytes == V3_HEADER_BYTES or head[V3_HEADER_BYTES] != 1):
        raise UnsafeDisk("the image has an unknown compression type")
    if refcount_order > _MAX_REFCOUNT_ORDER:
        raise UnsafeDisk(f"refcounts of 2^{refcount_order} bits")
    return header_bytes, features


def _check_table(what: str, offset: int, size_bytes: int, cluster: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise UnsafeDisk(f"the {what} has {size_bytes} bytes, more than {most_bytes}")
    if offset == 0 or offset % cluster or offset >= 1 << 56:
        raise UnsafeDisk(f"the {what} lies at {offset}, which is no place for it")


def _backing_name(head: bytes, offset: int, length: int, header_bytes: int, limit: int) -> str | None:
    if offset == 0 and length == 0:
        return None
    if offset < header_bytes or not 0 < length <= MAX_NAME_BYTES or offset + length > limit:
        raise UnsafeDisk(f"a backing file name of {length} bytes at {offset} lies outside the first cluster")
    try:
        name = head[offset : offset + length].decode()
    except UnicodeDecodeError as error:
        raise UnsafeDisk("the backing file name is not UTF-8") from error
    if not name.isprintable():
        raise UnsafeDisk(f"the backing file name {name[:100]!r} has control characters")
    return name


def _extensions(head: bytes, start: int, end: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while start + EXTENSION.size <= end:
        kind, length = EXTENSION.unpack_from(head, start)
        start += EXTENSION.size
        if kind == EXT_END:
            return found
        if kind in (_EXT_EXTERNAL_DATA, _EXT_ENCRYPTION):
            raise UnsafeDisk("the image has a header extension for an external data file or encryption")
        if length > end - start:
            raise UnsafeDisk(f"a header extension of {length} bytes leaves the header")
        found.append((kind, head[start : start + length]))
        start += ceil_div(length, 8) * 8
    return found
