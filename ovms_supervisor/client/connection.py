"""Requests over the daemon's UNIX socket, and its problem documents made into the errors they were."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from ovms_supervisor.client.http import BrokenReply, HttpPool, Reply
from spec.api import Problem
from spec.decoding import NotDecodable, from_json
from spec.errors import DaemonUnreachable, InternalError, OvmsError, PermissionMissing, class_for_code

T = TypeVar("T")

CONNECT_S = 5.0
_PROBLEM = "application/problem+json"

Query = Mapping[str, str | int | float | bool | None]


class Connection:
    """A pool of kept-alive connections to one socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._pool: HttpPool | None = None

    def open(self) -> None:
        """Make the pool; nothing is connected yet."""
        self._pool = HttpPool(self._socket, connect_limit_s=CONNECT_S)

    async def close(self) -> None:
        """Close all connections."""
        if self._pool:
            pool, self._pool = self._pool, None
            await pool.close()

    async def call(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        body: msgspec.Struct | None = None,
        query: Query | None = None,
        limit_s: float | None = None,
        accept_status: tuple[int, ...] = (),
    ) -> T:
        """One request; the reply as ``kind`` (``bytes`` as it is, ``NoneType`` for none).

        Raises the error that the daemon replied with, or DaemonUnreachable if it does not reply in ``limit_s``.
        """
        try:
            async with asyncio.timeout(limit_s), self._request(method, path, body, query, accept_status) as reply:
                content = await reply.read()
        except TimeoutError:
            raise DaemonUnreachable(f"the daemon on {self._socket} did not answer within {limit_s:g} s") from None
        if kind is bytes:
            return content  # type: ignore[return-value]
        if kind is type(None):
            return None
        return _decode(content, kind)

    @asynccontextmanager
    async def stream(self, path: str, query: Query, *, accept: str) -> AsyncIterator[Reply]:
        """The reply to a GET, to be read as it comes. Raises as :meth:`call`, also when the stream breaks off."""
        async with self._request("GET", path, None, query, (), accept) as reply:
            yield reply

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | None,
        query: Query | None,
        accept_status: tuple[int, ...],
        accept: str = "application/json",
    ) -> AsyncIterator[Reply]:
        if self._pool is None:
            raise RuntimeError("the client is used outside of its 'async with'")
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = "application/json"
        given = _text(query)
        target = f"{path}?{urlencode(given)}" if given else path
        data = None if body is None else msgspec.json.encode(body)
        with self._unreachable():
            async with self._pool.exchange(method, target, headers, data) as reply:
                if reply.status >= 400 and reply.status not in accept_status:
                    raise error_of(reply.status, reply.content_type, await reply.read())
                yield reply

    @contextmanager
    def _unreachable(self) -> Iterator[None]:
        try:
            yield
        except BrokenReply as error:
            raise DaemonUnreachable(
                f"the daemon on {self._socket} broke the connection off ({error})",
                remedy="See the daemon's log; ask again once it runs.",
            ) from error
        except PermissionError:
            raise PermissionMissing(
                f"the daemon's socket {self._socket} is not open to this user",
                remedy="Join the group of the socket (socket_group), or use a daemon of your own with --run-dir.",
            ) from None
        except OSError as error:
            why = "no socket there" if error.errno == errno.ENOENT else error.strerror or str(error)
            raise DaemonUnreachable(f"no daemon answers on {self._socket} ({why})") from None


def decode_line(line: bytes, kind: type[T]) -> T:
    """One line of a JSON lines stream."""
    return _decode(line, kind)


def error_of(status: int, content_type: str, content: bytes) -> OvmsError:
    """The error that a problem document tells of: of its own class, with its remedy and fields."""
    if content_type == _PROBLEM:
        try:
            problem = from_json(content, Problem)
        except NotDecodable:
            pass
        else:
            return class_for_code(problem.code)(problem.detail, remedy=problem.remedy, **_keywords(problem.fields))
    return InternalError(f"the daemon answered with status {status} and no problem document")


def _keywords(fields: dict[str, Any]) -> dict[str, Any]:
    # These two are parameters of the constructor, not fields.
    return {name: value for name, value in fields.items() if name not in ("detail", "remedy")}


def _decode(content: bytes, kind: type[T]) -> T:
    try:
        return from_json(content, kind)
    except NotDecodable as error:
        raise InternalError(f"the daemon's answer is not what this client understands: {error}") from error


def _text(query: Query | None) -> dict[str, str]:
    given = {name: value for name, value in (query or {}).items() if value is not None and value is not False}
    return {name: "true" if value is True else str(value) for name, value in given.items()}
