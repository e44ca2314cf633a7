"""Which part of a log a reader asks for: ``tail``, ``since`` and ``until`` with docker's meaning."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from spec.errors import InvalidRequest

_DURATION = re.compile(r"(?:(\d{1,9}(?:\.\d{1,9})?)(ns|us|µs|ms|s|m|h|d))")
_UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_UNIX = re.compile(r"(\d{1,11})(?:\.(\d{1,9}))?")
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?)?([Zz]|[+-]\d\d:\d\d)?",
)
_MAX_TAIL = 1 << 40


@dataclass(frozen=True, slots=True)
class Window:
    """The last ``tail`` lines that were seen from ``since_ns`` to ``until_ns`` (nanoseconds since the epoch)."""

    tail: int | None = None
    since_ns: int | None = None
    until_ns: int | None = None


def parse_tail(text: str) -> int | None:
    """``all`` or a number of lines. Raises InvalidRequest."""
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > len(str(_MAX_TAIL)):
        raise InvalidRequest(f"tail is {text[:40]!r}, which is neither 'all' nor a number of lines", path="tail")
    return int(text)


def parse_time(text: str, *, name: str, now_ns: int | None = None) -> int:
    """A moment in nanoseconds since the epoch.

    RFC 3339 (without an offset it is UTC; a date alone is its midnight), seconds since the epoch, or a duration
    such as ``10m`` or ``1h30m`` before now. ``name`` is the parameter's, for the error. Raises InvalidRequest.
    """
    if match := _UNIX.fullmatch(text):
        return int(match[1]) * 10**9 + _fraction_ns(match[2])
    if match := _RFC3339.fullmatch(text):
        date, clock, fraction, offset = match.groups()
        try:
            moment = datetime.fromisoformat(f"{date}T{clock or '00:00'}{(offset or 'Z').upper()}")
            return int(moment.astimezone(UTC).timestamp()) * 10**9 + _fraction_ns(fraction)
        except (ValueError, OverflowError):
            pass
    elif _DURATION.match(text):
        parts = _DURATION.findall(text)
        if "".join(number + unit for number, unit in parts) == text:
            now_ns = time.time_ns() if now_ns is None else now_ns
            return now_ns - sum(int(float(number) * _UNIT_NS[unit]) for number, unit in parts)
    raise InvalidRequest(
        f"{name} is {text[:60]!r}, which is no time",
        remedy="Write an RFC 3339 time, seconds since the epoch, or a duration such as 10m or 1h30m.",
        path=name,
    )


def format_time(ts_ns: int) -> str:
    """RFC 3339 in UTC with all nine digits, so that texts sort as times do."""
    seconds, nanoseconds = divmod(ts_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _fraction_ns(digits: str | None) -> int:
    return int((digits or "0").ljust(9, "0"))
