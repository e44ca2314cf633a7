"""Classes of x86-64 CPUs, as the psABI numbers them (x86-64-v1 … v4): what an artifact may be made for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

_LEVELS: Final = (
    frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
    frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}),
    frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)
"""What v2, v3 and v4 add, as /proc/cpuinfo calls it."""
NAMES: Final = ("x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4")


def cpu_class(flags: Collection[str]) -> int:
    """The class of a CPU with these flags: an index into ``NAMES``."""
    level = 0
    for needed in _LEVELS:
        if not needed <= set(flags):
            break
        level += 1
    return level
