"""Lay out an empty qcow2 overlay, so that a start needs no qemu-img."""

from __future__ import annotations

import struct
from typing import Final

from spec.errors import UnsafeDisk
from spec.manifest import MAX_DISK_BYTES
from spec.qcow2.layout import (
    EXT_BACKING_FORMAT,
    MAGIC,
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

OVERLAY_CLUSTER_BYTES: Final = 64 * 1024
_HEADER_BYTES = V3_HEADER_BYTES + 8
"""With the compression type. Cloud Hypervisor reads header extensions only of a header longer than the bare v3 one."""
_REFCOUNT_ORDER = 4
_REFCOUNT = struct.Struct(">H")


def build_overlay_header(
    backing_name: str,
    backing_format: BackingFormat,
    virtual_size_bytes: int,
) -> bytes:
    """All bytes of an empty overlay image (v3, 64 KiB clusters, 16-bit refcounts) over a backing file.

    Written to a file as they are, they make a complete image that reads as its backing file. ``backing_name`` is a
    path; a relative one is resolved against the directory of the overlay. Raises UnsafeDisk for a name or size that
    the format can't hold.
    """
    if not 0 < virtual_size_bytes <= MAX_DISK_BYTES or virtual_size_bytes % SECTOR_BYTES:
        raise UnsafeDisk(f"a disk has whole sectors, up to {MAX_DISK_BYTES} bytes; not {virtual_size_bytes}")
    cluster = OVERLAY_CLUSTER_BYTES
    l1_entries = ceil_div(virtual_size_bytes, cluster * (cluster // POINTER_BYTES))
    l1_clusters = ceil_div(l1_entries * POINTER_BYTES, cluster)
    # Cloud Hypervisor never grows the refcount table: make it large enough for a completely written disk.
    most_clusters = ceil_div(virtual_size_bytes, cluster) + l1_entries + l1_clusters + 1
    refcounts_per_block = cluster // _REFCOUNT.size
    most_blocks = ceil_div(most_clusters, refcounts_per_block)
    most_blocks += ceil_div(most_blocks, refcounts_per_block) + 1
    table_clusters = ceil_div(most_blocks * POINTER_BYTES, cluster)

    block_offset = (1 + table_clusters) * cluster
    l1_offset = block_offset + cluster
    used_clusters = 1 + table_clusters + 1 + l1_clusters
    area = extension_area([(EXT_BACKING_FORMAT, backing_format.encode())])
    encoded = encode_name(backing_name)
    image = bytearray(used_clusters * cluster)
    V2_HEADER.pack_into(
        image, 0, MAGIC, 3, _HEADER_BYTES + len(area), len(encoded), cluster.bit_length() - 1,
        virtual_size_bytes, 0, l1_entries, l1_offset, cluster, table_clusters, 0, 0,
    )  # fmt: skip
    V3_TAIL.pack_into(image, V2_HEADER.size, 0, 0, 0, _REFCOUNT_ORDER, _HEADER_BYTES)
    variable = area + encoded
    image[_HEADER_BYTES : _HEADER_BYTES + len(variable)] = variable
    struct.pack_into(">Q", image, cluster, block_offset)
    for index in range(used_clusters):
        _REFCOUNT.pack_into(image, block_offset + index * _REFCOUNT.size, 1)
    return bytes(image)
