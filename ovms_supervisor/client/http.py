"""HTTP/1.1 over a UNIX socket, as much of it as the daemon speaks.

No HTTP library: importing one takes longer than most calls of ``ovm``, and a request through it three times as long.
What comes is bounded and distrusted, though the daemon is ours.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

MAX_LINE_BYTES: Final = 1 << 20
"""Of a head, and of a line of a stream."""
_PIECE_BYTES: Final = 64 * 1024
_NO_BODY: Final = (204, 304)

_Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class BrokenReply(Exception):
    """What came on a connection was no HTTP, or ended too early."""


class Reply:
    """The reply to one request; its body can be had once, whole or as it comes. Its methods raise BrokenReply."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self.headers = headers
        """Names in lower case."""
        self.is_streamed = headers.get("transfer-encoding") == "chunked"
        """Whether it comes piece by piece, perhaps for ever."""
        self.at_end = status in _NO_BODY or headers.get("content-length") == "0"
        self._content: bytes | None = b"" if self.at_end else None
        self._reader = reader

    @property
    def content_type(self) -> str:
        """The media type without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip()

    async def read(self) -> bytes:
        """The whole body; also more than once."""
        if self._content is None:
            self._content = b"".join([piece async for piece in self.pieces()])
        return self._content

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes."""
        with _broken():
            if self.is_streamed:
                while size_bytes := int(await self._line(), 16):
                    async for piece in self._exactly(size_bytes):
                        yield piece
                    await self._line()
                while await self._line():
                    pass  # trailers
            elif not self.at_end:
                async for piece in self._exactly(int(self.headers["content-length"])):
                    yield piece
        self.at_end = True

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """The body line by line, as it comes."""
        waiting = b""
        async for piece in self.pieces():
            *lines, waiting = (waiting + piece).split(b"\n")
            for line in lines:
                yield line
            if len(waiting) > MAX_LINE_BYTES:
                raise BrokenReply(f"a line of more than {MAX_LINE_BYTES} bytes")
        if waiting:
            yield waiting

    async def _line(self) -> bytes:
        return (await self._reader.readuntil(b"\r\n"))[:-2]

    async def _exactly(self, size_bytes: int) -> AsyncIterator[bytes]:
        while size_bytes > 0:
            piece = await self._reader.read(min(size_bytes, _PIECE_BYTES))
            if not piece:
                raise BrokenReply("it was closed in the middle of a reply")
            size_bytes -= len(piece)
            yield piece


class HttpPool:
    """Connections to one socket, kept for the next request."""

    def __init__(self, socket: Path, *, connect_limit_s: float) -> None:
        self._socket = socket
        self._connect_limit_s = connect_limit_s
        self._idle: list[_Pair] = []

    async def close(self) -> None:
        """Close the idle ones. Those in use are closed by who uses them."""
        while self._idle:
            await _close(self._idle.pop()[1])

    @asynccontextmanager
    async def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> AsyncIterator[Reply]:
        """One request; the reply's head has come when the context begins. Raises OSError, TimeoutError, BrokenReply."""
        fields = {"Host": "ovms", **headers} | ({} if body is None else {"Content-Length": str(len(body))})
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        reader, writer = await self._connection()
        reply: Reply | None = None
        try:
            with _broken():
                writer.write(f"{head}\r\n".encode() + (body or b""))
                await writer.drain()
                reply = await _reply(reader)
            yield reply
        finally:
            if reply is not None and reply.at_end and reply.headers.get("connection") != "close":
                self._idle.append((reader, writer))
            else:
                await _close(writer)

    async def _connection(self) -> _Pair:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing() and _is_quiet(writer):
                return reader, writer
            await _close(writer)
        async with asyncio.timeout(self._connect_limit_s):
            return await asyncio.open_unix_connection(self._socket, limit=MAX_LINE_BYTES)


async def _reply(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    version, _, rest = first.partition(" ")
    if version != "HTTP/1.1" or not rest[:3].isdigit():
        raise BrokenReply(f"its reply is not HTTP: {first[:80]!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Reply(int(rest[:3]), headers, reader)


@contextmanager
def _broken() -> Iterator[None]:
    """Whatever shows that the other side does not speak HTTP, or has gone, becomes BrokenReply."""
    try:
        yield
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        raise BrokenReply("it was closed in the middle of a reply") from error
    except (asyncio.LimitOverrunError, ValueError, KeyError) as error:
        raise BrokenReply(f"its reply is not HTTP: {error!r}") from error


def _is_quiet(writer: asyncio.StreamWriter) -> bool:
    """Whether nothing has come on an idle connection: neither its end, nor what nobody has asked for."""
    poller = select.poll()
    poller.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
    return not poller.poll(0)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
