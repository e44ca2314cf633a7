"""Sizes as people write them: ``512M``, ``2G``, ``1048576`` (powers of 1024, as in docker and qemu)."""

from __future__ import annotations

import re

from spec.errors import InvalidSize

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
PAGE_BYTES = 4096

_PATTERN = re.compile(r"(\d{1,15})\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_FACTOR = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}
_MAX_BYTES = 1 << 60


def parse_size(text: str) -> int:
    """Bytes of a size such as ``512M``. Raises InvalidSize."""
    match = _PATTERN.fullmatch(text.strip())
    if not match:
        raise InvalidSize(f"{text[:40]!r} is not a size")
    size_bytes = int(match[1]) * _FACTOR[(match[2] or "").upper()]
    if size_bytes > _MAX_BYTES:
        raise InvalidSize(f"{text[:40]!r} is more than an exbibyte")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """A size for people, three figures: ``362 MiB``, ``1.50 GiB``."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    value, units = size_bytes / KIB, iter(("KiB", "MiB", "GiB"))
    unit = next(units)
    while value >= 1000 and (larger := next(units, None)):
        value, unit = value / KIB, larger
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f} {unit}"


def is_power_of_two(number: int) -> bool:
    """Whether a number is 1, 2, 4, … (the sizes a PCI BAR can have)."""
    return number > 0 and number & (number - 1) == 0
