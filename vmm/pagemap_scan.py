"""``PAGEMAP_SCAN`` (ioctl_pagemap_scan(2), Linux 6.7): the kernel looks through the page tables by itself.

It answers with runs of pages and skips what no table covers, so that a scan costs what is mapped. Reading an entry of
8 bytes for each page costs ten times as much, and as much for pages that were never touched.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from array import array
from collections.abc import Iterator
from typing import Final

_FILE, _PRESENT, _SWAPPED = 1 << 2, 1 << 3, 1 << 4
_ARGUMENT = struct.Struct("=12Q")
"""size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, return mask."""
_PAGEMAP_SCAN: Final = 3 << 30 | _ARGUMENT.size << 16 | ord("f") << 8 | 16
"""``_IOWR('f', 16, struct pm_scan_arg)``."""
_REGIONS: Final = 4096
_REGION_WORDS: Final = 3
"""start, end, categories."""
_UNKNOWN = frozenset({errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


def own_ranges(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]] | None:
    """The ranges of addresses whose pages are the process's own, ascending; None where the kernel has no such call.

    ``pagemap`` is a descriptor of ``/proc/PID/pagemap``. Raises OSError, ProcessLookupError if the process is gone.
    """
    regions = array("Q", bytes(8 * _REGION_WORDS * _REGIONS))
    try:
        found, reached = _scan(pagemap, start, end, regions)
    except OSError as error:
        if error.errno in _UNKNOWN:
            return None
        raise
    return _ranges(pagemap, found, reached, end, regions)


def _ranges(pagemap: int, found: int, reached: int, end: int, regions: array[int]) -> Iterator[tuple[int, int]]:
    while True:
        for number in range(found):
            yield regions[_REGION_WORDS * number], regions[_REGION_WORDS * number + 1]
        if reached >= end:
            return
        found, reached = _scan(pagemap, reached, end, regions)


def _scan(pagemap: int, start: int, end: int, regions: array[int]) -> tuple[int, int]:
    """The number of regions found, and the address up to which all is known.

    Where the kernel stopped for want of room, that is the end of the last region: what it says itself may lie before.
    """
    address, _ = regions.buffer_info()
    argument = bytearray(
        _ARGUMENT.pack(_ARGUMENT.size, 0, start, end, 0, address, _REGIONS, 0, _FILE, _FILE, _PRESENT | _SWAPPED, _FILE)
    )
    found = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument)
    reached: int = _ARGUMENT.unpack(argument)[4]
    last_end = regions[_REGION_WORDS * (found - 1) + 1] if found else start
    return found, last_end if found == _REGIONS else max(reached, last_end)
