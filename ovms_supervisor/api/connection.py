"""One connection of a client: what it may send, and how long it may take over it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import http_exceptions, web

from ovms_supervisor.api.limits import Limits
from ovms_supervisor.api.problem import MEDIA_TYPE, encoded_problem
from spec.errors import InvalidRequest


class Connection(web.RequestHandler):
    """A head that is none is answered with a problem document; a client that takes nothing is cut off."""

    def __init__(self, server: web.Server, limits: Limits, left: Callable[[Connection], None]) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=limits.idle_s,
            max_line_size=limits.line_bytes,
            max_field_size=limits.line_bytes,
            max_headers=limits.header_lines,
            lingering_time=limits.linger_s,
            read_bufsize=limits.read_ahead_bytes,
            auto_decompress=False,  # a kilobyte could become a gigabyte
        )
        self._stalled_s = limits.stalled_s
        self._left = left
        self._stall: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone."""
        self._left(self)
        self._end_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Much waits to be sent: the client has a while to take some of it."""
        super().pause_writing()
        self._end_stall()
        self._stall = asyncio.get_running_loop().call_later(self._stalled_s, self._cut_off)

    def resume_writing(self) -> None:
        """It did."""
        self._end_stall()
        super().resume_writing()

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _cut_off(self) -> None:
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The reply to a head that no handler sees. Nothing for the log: a client could fill it so."""
        if not isinstance(exc, http_exceptions.HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        too_long = isinstance(exc, http_exceptions.LineTooLong) or "Too many headers" in exc.message
        status = 431 if too_long else 400
        detail = "the head of the request is too long" if too_long else "that is not HTTP/1.1"
        response = web.Response(
            body=encoded_problem(InvalidRequest(detail), status=status), status=status, content_type=MEDIA_TYPE
        )
        response.force_close()
        return response
