"""The client's HTTP against servers that are slow, rude, gone or no HTTP servers at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovms_supervisor.client.http import BrokenReply, HttpPool

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\nX-Request-Id: 1\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\nX-Request-Id: 1\r\n\r\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def _every_exchange_is_judged() -> None:
    """These servers are not the daemon: there is no document to hold them to."""


@asynccontextmanager
async def pool_of(directory: Path, handler: Handler) -> AsyncIterator[HttpPool]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, directory / "s.sock")
    pool = HttpPool(directory / "s.sock", connect_limit_s=5)
    async with server:
        try:
            yield pool
        finally:
            await pool.close()


def saying(*pieces: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    return handler


async def fetched(pool: HttpPool) -> bytes:
    async with pool.exchange("GET", "/", {}) as reply:
        return await reply.read()


async def test_a_connection_is_kept_for_the_next_request_and_left_when_it_broke(tmp_path: Path) -> None:
    connections = 0

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await writer.drain()

    async with pool_of(tmp_path, twice) as pool:
        for _ in range(2):
            assert await fetched(pool) == b"hello"
        assert connections == 1
        await asyncio.sleep(0.05)  # the server hangs up
        assert await fetched(pool) == b"hello"
        assert connections == 2
        async with pool.exchange("GET", "/", {}) as reply:
            assert reply.status == 200  # and nobody reads it
        assert await fetched(pool) == b"hello"
        assert connections == 3


async def test_a_stream_is_handed_on_as_it_comes(tmp_path: Path) -> None:
    pieces = (CHUNKED, b"5\r\none\n", b"t\r", b"\n4;x=y\r\nwo\nt\r\n2\r\nhr\r\n", b"0\r\nTrailer: 1\r\n\r\n")
    async with pool_of(tmp_path, saying(*pieces)) as pool, pool.exchange("GET", "/", {}) as reply:
        assert (reply.status, reply.content_type, reply.is_streamed) == (200, "text/plain", True)
        with pytest.raises(BrokenReply, match="not HTTP"):
            [line async for line in reply.lines()]
    pieces = (CHUNKED, b"5\r\none\n", b"t\r", b"\n4\r\nwo\nt\r\n2\r\nhr\r\n", b"0\r\nTrailer: 1\r\n\r\n")
    (tmp_path / "s.sock").unlink(missing_ok=True)
    async with pool_of(tmp_path, saying(*pieces)) as pool, pool.exchange("GET", "/", {}) as reply:
        assert [line async for line in reply.lines()] == [b"one", b"two", b"thr"]
        assert reply.at_end


@pytest.mark.parametrize(
    "said",
    [
        (),
        (b"HTTP/1.1 200",),
        (OK[:-1],),
        (b"SSH-2.0-OpenSSH\r\n\r\n",),
        (b"HTTP/1.1 2x0 OK\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\n\r\nwithout a length",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",),
        (CHUNKED, b"5\r\nhel"),
        (CHUNKED, b"x\r\nhello\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (2 << 20),),
    ],
)
async def test_what_is_no_reply_is_told(tmp_path: Path, said: tuple[bytes, ...]) -> None:
    async with pool_of(tmp_path, saying(*said)) as pool:
        with pytest.raises(BrokenReply):
            await fetched(pool)


async def test_a_line_that_has_no_end_is_not_collected_for_ever(tmp_path: Path) -> None:
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    async with pool_of(tmp_path, saying(CHUNKED, *[piece] * 20)) as pool, pool.exchange("GET", "/", {}) as reply:
        with pytest.raises(BrokenReply, match="a line"):
            [line async for line in reply.lines()]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.data())
def test_any_body_comes_through_however_it_is_cut(pieces: list[bytes], data: st.DataObject) -> None:
    """Chunks and packets have nothing to do with each other."""
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    cut = data.draw(st.integers(0, len(chunks)))

    async def run(directory: Path) -> bytes:
        async with pool_of(directory, saying(CHUNKED + chunks[:cut], chunks[cut:])) as pool:
            return await fetched(pool)

    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        assert asyncio.run(run(Path(directory))) == b"".join(pieces)
