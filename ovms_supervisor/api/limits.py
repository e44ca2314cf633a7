"""How much clients may ask of the daemon at once: what keeps its memory bounded and its answers coming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from spec.errors import Overloaded


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one daemon. Times are in seconds."""

    connections: int = 1024
    """More are told to come back, but for those that ask for ``/healthz``."""
    turned_away: int = 1024
    """Connections above that number which are being told so; still more are closed without a word."""
    line_bytes: int = 8190
    """Of a request line, and of each line of a head."""
    header_lines: int = 64
    read_ahead_bytes: int = 32 << 10
    """What is read ahead for a handler that has not asked for it, per connection."""
    idle_s: float = 60.0
    """For the head of a request to come whole, counted from the reply before it: for silence and for a trickle."""
    body_s: float = 30.0
    """For a body to come whole."""
    linger_s: float = 1.0
    """Reading, and throwing away, what is left of a body that was refused: so that its sender sees the reply."""
    stalled_s: float = 60.0
    """For a client to take something of what waits to be sent to it."""
    large_bodies_bytes: int = 64 << 20
    """All bodies together that are longer than usual."""


class BodyRoom:
    """The memory that long bodies take while they arrive and are worked on."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0

    @contextmanager
    def taking(self, size_bytes: int) -> Iterator[None]:
        """Room for one body for as long as the context lasts. Raises Overloaded."""
        if self._taken_bytes + size_bytes > self._limit_bytes:
            raise Overloaded(f"{self._taken_bytes} bytes of request bodies are arriving; there is no room for more now")
        self._taken_bytes += size_bytes
        try:
            yield
        finally:
            self._taken_bytes -= size_bytes
