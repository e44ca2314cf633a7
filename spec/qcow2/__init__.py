"""qcow2 images: parse a header that may be hostile, rename its backing file, lay out an empty overlay. No I/O.

The format is QEMU's docs/interop/qcow2.txt; the bounds are the narrower of what QEMU and Cloud Hypervisor open.
"""

from spec.qcow2.header import HEAD_BYTES, Qcow2Header, is_qcow2, parse_header, rewrite_backing
from spec.qcow2.layout import MAX_NAME_BYTES, SECTOR_BYTES, BackingFormat
from spec.qcow2.overlay import OVERLAY_CLUSTER_BYTES, build_overlay_header

__all__ = [
    "HEAD_BYTES",
    "MAX_NAME_BYTES",
    "OVERLAY_CLUSTER_BYTES",
    "SECTOR_BYTES",
    "BackingFormat",
    "Qcow2Header",
    "build_overlay_header",
    "is_qcow2",
    "parse_header",
    "rewrite_backing",
]
