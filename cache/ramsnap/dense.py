"""Which parts of an image are worth huge pages: those of 2 MiB that are hardly anything but data.

A huge page is all there or not at all, so the zeros in it take memory, too. Where a quarter or more would be zeros, the
image keeps its holes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cache.huge_tmpfs import HUGE_PAGE_BYTES
from spec.ramsnap import FRAME_BYTES, FrameRecord, RamsnapIndex
from spec.sizes import PAGE_BYTES

_PAGES: Final = HUGE_PAGE_BYTES // PAGE_BYTES
_MASK: Final = (1 << _PAGES) - 1
_LEAST_PAGES: Final = _PAGES * 3 // 4
_MAX_RANGES: Final = 8192
"""Each may cost two entries of the process's map, which has 65,530."""


def dense_extents(index: RamsnapIndex) -> dict[int, int]:
    """Offsets of the dense parts in the RAM image, ascending, each with the bytes of zeros in it."""
    frames = index.frames[len(index.frames) - -(-index.header.memory_bytes // FRAME_BYTES) :]
    dense: dict[int, int] = {}
    ranges = 0
    for number, frame in enumerate(frames):
        for part, pages in enumerate(_pages(frame)):
            start = number * FRAME_BYTES + part * HUGE_PAGE_BYTES
            if pages >= _LEAST_PAGES and start + HUGE_PAGE_BYTES <= index.header.memory_bytes:
                ranges += start - HUGE_PAGE_BYTES not in dense
                if ranges > _MAX_RANGES:
                    return dense
                dense[start] = (_PAGES - pages) * PAGE_BYTES
    return dense


def joined(extents: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbours among ascending offsets of dense parts as one: offset and length in bytes."""
    start = end = -1
    for offset in extents:
        if offset != end:
            if end > start:
                yield start, end - start
            start = offset
        end = offset + HUGE_PAGE_BYTES
    if end > start:
        yield start, end - start


def _pages(frame: FrameRecord) -> list[int]:
    """How many pages each huge page of the frame would have."""
    bits = int.from_bytes(frame.pages, "little")
    return [(bits >> at & _MASK).bit_count() for at in range(0, FRAME_BYTES // PAGE_BYTES, _PAGES)]
