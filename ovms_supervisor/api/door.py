"""Where clients come in: so many at a time, and a short word for those above that number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast
from weakref import WeakSet

import msgspec
import structlog
from aiohttp import web

from ovms_supervisor.api.connection import Connection
from ovms_supervisor.api.limits import Limits
from ovms_supervisor.api.problem import MEDIA_TYPE, RETRY_AFTER_S, encoded_problem
from spec.api import Health
from spec.errors import Overloaded

_WORD_S: Final = 2.0
"""For a client above the limit to say what it wants."""
_QUIET_S: Final = 10.0
"""Between two lines in the log about turning clients away, of which there may be thousands a second."""
_HEALTH: Final = (b"GET /healthz ", b"GET /healthz?")
_TOO_MANY: Final = encoded_problem(Overloaded("too many connections"), status=503)

_log = structlog.get_logger(__name__)


class Door:
    """Makes the protocol of each connection: one that serves, or one that turns away."""

    def __init__(self, server: web.Server, limits: Limits, lag_s: Callable[[], float]) -> None:
        self._server = server
        self._limits = limits
        self._lag_s = lag_s
        # Weak, as a protocol whose handshake fails is never told that it lost its connection.
        self._inside: WeakSet[Connection] = WeakSet()
        self._outside: WeakSet[TurnedAway] = WeakSet()
        self._told_at_s = float("-inf")

    def __call__(self) -> asyncio.BaseProtocol:
        """The protocol of the next connection; counted from here on, as many are accepted before the first is made."""
        if len(self._inside) < self._limits.connections:
            inside = Connection(self._server, self._limits, self._inside.discard)
            self._inside.add(inside)
            return inside
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_at_s > _QUIET_S:
            self._told_at_s = now_s
            _log.warning("clients are turned away", connections=len(self._inside))
        heard = len(self._outside) < self._limits.turned_away
        outside = TurnedAway(self._limits.line_bytes if heard else 0, self._lag_s, self._outside.discard)
        self._outside.add(outside)
        return outside


class TurnedAway(asyncio.Protocol):
    """A connection above the limit: 503, but ``/healthz`` is answered. It ends with its one reply.

    ``head_bytes``: how long a head it may send; 0: it is closed at once.
    """

    def __init__(self, head_bytes: int, lag_s: Callable[[], float], left: Callable[[TurnedAway], None]) -> None:
        self._head_bytes = head_bytes
        self._lag_s = lag_s
        self._left = left
        self._head = b""
        self._transport: asyncio.Transport
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hear what it wants, or don't."""
        self._transport = cast(asyncio.Transport, transport)
        if self._head_bytes:
            self._limit = asyncio.get_running_loop().call_later(_WORD_S, self._transport.abort)
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Reply when the head is there, or too long."""
        self._head += data
        if b"\r\n\r\n" not in self._head and len(self._head) < self._head_bytes:
            return
        if self._head.startswith(_HEALTH):
            health = Health(status="ok", loop_lag_ms=round(self._lag_s() * 1000, 2))
            self._reply("200 OK", "application/json", msgspec.json.encode(health))
        else:
            self._reply("503 Service Unavailable", MEDIA_TYPE, _TOO_MANY, f"Retry-After: {RETRY_AFTER_S}\r\n")

    def _reply(self, status: str, content_type: str, body: bytes, more: str = "") -> None:
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n{more}\r\n"
        )
        self._transport.pause_reading()
        self._transport.write(head.encode() + body)
        self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        """The client is gone."""
        self._left(self)
        if self._limit is not None:
            self._limit.cancel()
