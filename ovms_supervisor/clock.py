"""Times for people, and durations by the monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime


def utc_now() -> str:
    """The present moment as RFC 3339 in UTC with microseconds, which sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Stopwatch:
    """Names and times the phases of one piece of work; a phase inside a phase is named ``outer.inner``."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._names: list[str] = []
        self.phases_ms: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block, also one that fails."""
        self._names.append(name)
        path = ".".join(self._names)
        began = time.monotonic()
        self.phases_ms[path] = 0.0  # a place in the order before the inner ones
        try:
            yield
        finally:
            self.phases_ms[path] = _ms(time.monotonic() - began)
            self._names.pop()

    @property
    def total_ms(self) -> float:
        """Milliseconds since the stopwatch was made."""
        return _ms(time.monotonic() - self._began)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
