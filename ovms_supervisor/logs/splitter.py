"""Where the lines of a stream of console bytes begin and end. Pure; bytes stay bytes."""

from __future__ import annotations

from itertools import accumulate

MAX_LINE_BYTES = 16 << 10
"""A longer line is cut into parts of this size, all but the last marked as partial."""


def split(data: bytes, *, at_end: bool) -> list[int]:
    """The length of each line at the front of ``data``, its ``\\n`` included; what is left over is not complete yet.

    ``at_end``: no more will come, so the rest is a line too.
    """
    pieces = data.split(b"\n")
    rest = len(pieces.pop())
    lengths = [len(piece) + 1 for piece in pieces]
    if lengths and max(lengths) > MAX_LINE_BYTES:
        lengths = [part for length in lengths for part in _parts(length)]
    while rest > MAX_LINE_BYTES:
        lengths.append(MAX_LINE_BYTES)
        rest -= MAX_LINE_BYTES
    if rest and at_end:
        lengths.append(rest)
    return lengths


def offsets(start: int, lengths: list[int]) -> list[int]:
    """The file offset of each line, the first of which is at ``start``."""
    return list(accumulate(lengths[:-1], initial=start)) if lengths else []


def content(raw: bytes) -> tuple[bytes, bool]:
    """A line as printed, without its end (``\\n`` or ``\\r\\n``), and whether it is only a part of one."""
    if raw.endswith(b"\n"):
        return raw[:-1].rstrip(b"\r"), False
    return raw, len(raw) == MAX_LINE_BYTES


def _parts(length: int) -> list[int]:
    whole, rest = divmod(length, MAX_LINE_BYTES)
    return [MAX_LINE_BYTES] * whole + ([rest] if rest else [])
