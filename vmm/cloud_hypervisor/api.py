"""The HTTP API of a Cloud Hypervisor process, on its UNIX socket.

A connection per call, made beforehand where one is expected, and no client library: calls are few, replies small, and
a host has thousands of VMMs that are talked to twice in their lives. A session of a general HTTP client would cost each
of them tens of kilobytes, and each call twice the time. What the server sends is bounded and distrusted like any other
input.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import msgspec

from spec.decoding import NotDecodable, from_json
from spec.errors import VmmGarbage, VmmRefused
from vmm import unix_socket

_MAX_HEAD_BYTES = 16 * 1024
_MAX_BODY_BYTES = 4 * 1024 * 1024  # vm.info of a large machine is some ten kilobytes
_MAX_MESSAGE_CHARACTERS = 2000


class Api:
    """The calls of one process. No method has a time limit of its own: race it against the process's exit."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._connected: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        """Have a connection ready for the next call, which then need not make one. What fails, fails at that call."""
        if self._connected is None:
            with contextlib.suppress(OSError):
                self._connected = await unix_socket.connect(self._socket)

    def close(self) -> None:
        """Close the connection that was to be ready; idempotent."""
        if self._connected is not None:
            self._connected[1].close()
            self._connected = None

    async def put(self, command: str, body: object = None) -> None:
        """``PUT /api/v1/{command}``, with a JSON body if one is given. Raises VmmRefused, VmmGarbage."""
        await self._call("PUT", command, b"" if body is None else msgspec.json.encode(body))

    async def get(self, command: str) -> dict[str, Any]:
        """``GET /api/v1/{command}``, which answers with a JSON object. Raises VmmRefused, VmmGarbage."""
        reply = await self._call("GET", command, b"")
        try:
            return from_json(reply, dict[str, Any])
        except NotDecodable as error:
            raise VmmGarbage(f"the reply to {command} is not a JSON object: {error}", command=command) from error

    def _take_connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The one that was made ready, unless the process has closed it."""
        ready, self._connected = self._connected, None
        if ready is not None and (ready[0].at_eof() or ready[1].is_closing()):
            ready[1].close()
            return None
        return ready

    async def _call(self, method: str, command: str, body: bytes) -> bytes:
        content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        request = f"{method} /api/v1/{command} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n{content}\r\n".encode()
        try:
            reader, writer = self._take_connected() or await unix_socket.connect(self._socket)
            try:
                writer.write(request + body)
                status, reply = await _read_reply(reader)
            except BaseException:
                writer.transport.abort()  # a close would wait until the peer, which may hang, has read all
                raise
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        except OSError as error:
            raise VmmGarbage(f"{command}: the API socket broke: {error.strerror or error}", command=command) from error
        except asyncio.IncompleteReadError as error:
            raise VmmGarbage(f"{command}: the connection was closed in mid-reply", command=command) from error
        except ValueError as error:  # not HTTP, or beyond a limit
            raise VmmGarbage(f"{command}: {error}", command=command) from error
        if status >= 300:
            raise VmmRefused(f"{command}: {error_message(reply)}", command=command, status=status)
        return reply


async def _read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one HTTP/1.1 reply. Raises ValueError, asyncio.IncompleteReadError."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise ValueError("the head of the reply has no end") from error
    if len(head) > _MAX_HEAD_BYTES:
        raise ValueError(f"the head of the reply has {len(head)} bytes")
    status, length = parse_head(head)
    if length > _MAX_BODY_BYTES:
        raise ValueError(f"the reply has {length} bytes")
    return status, await reader.readexactly(length)


def parse_head(head: bytes) -> tuple[int, int]:
    """Status and content length of a reply's head. Raises ValueError for what is not HTTP/1."""
    start, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = start.partition(" ")
    status = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not _is_number(status) or rest[3:4] not in ("", " "):
        raise ValueError(f"the reply is not HTTP: {start[:80]!r}")
    length = 0
    for line in lines:
        name, _, value = line.partition(":")
        match name.strip().lower():
            case "content-length":
                if not _is_number(value.strip()):
                    raise ValueError(f"the reply's content length is {value.strip()[:80]!r}")
                length = int(value)
            case "transfer-encoding":
                raise ValueError("the reply has a transfer encoding, which the server does not have")
    return int(status), length


def error_message(body: bytes) -> str:
    """One sentence of an error reply: a JSON array of messages, outer to inner; older releases sent plain text."""
    try:
        text = ": ".join(from_json(body, list[str]))
    except NotDecodable:
        text = body.decode(errors="replace")
    return text.strip()[:_MAX_MESSAGE_CHARACTERS] or "no reason given"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12
