"""The kinds of clients. Each returns what it was told, counted; none of them lasts longer than its patience."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATIENCE_S = 90.0
_MIB = 1 << 20
_GET = b"GET %s HTTP/1.1\r\nHost: ovms\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Aim:
    """What clients are set upon."""

    socket: Path
    artifact: str
    starts: int


Told = Counter[str]
Clients = Callable[[Aim], Coroutine[Any, Any, Told]]


@asynccontextmanager
async def _connection(aim: Aim) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(aim.socket)
            break
        except BlockingIOError:  # its backlog is full
            await asyncio.sleep(0.01)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _told(reader: asyncio.StreamReader) -> str:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            line = await reader.readline()
    except TimeoutError:
        return "no reply"
    except ConnectionError:
        return "closed"
    return line.split(b" ")[1].decode() if line.startswith(b"HTTP/1.1 ") else "closed"


async def _many(count: int, client: Callable[[int], Awaitable[str]]) -> Told:
    return Counter(await asyncio.gather(*(client(number) for number in range(count))))


async def starts(aim: Aim) -> Told:
    """All at once, each waiting until its machine runs."""
    body = json.dumps({"manifest": aim.artifact}).encode()
    target = f"/start?wait=running&timeout={_PATIENCE_S:g}"
    head = f"POST {target} HTTP/1.1\r\nHost: ovms\r\nContent-Length: {len(body)}\r\n\r\n"

    async def client(_: int) -> str:
        async with _connection(aim) as (reader, writer):
            writer.write(head.encode() + body)
            return await _told(reader)

    return await _many(aim.starts, client)


async def connections(aim: Aim) -> Told:
    """2,000 that ask for something small all at once and stay for a while."""
    asked = asyncio.Barrier(2000)

    async def client(_: int) -> str:
        async with _connection(aim) as (reader, writer):
            writer.write(_GET % b"/instances")
            told = await _told(reader)
            with suppress(asyncio.BrokenBarrierError):
                await asked.wait()
            await asyncio.sleep(1)
            return told

    return await _many(2000, client)


async def slow(aim: Aim) -> Told:
    """1,000 that send a byte of their head each second."""

    async def client(_: int) -> str:
        async with _connection(aim) as (reader, writer):
            with suppress(ConnectionError):
                for byte in (_GET % b"/version")[:20]:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(1)
                writer.write((_GET % b"/version")[20:])
            return await _told(reader)

    return await _many(1000, client)


async def stuck(aim: Aim) -> Told:
    """500 that ask for everything a hundred times and take nothing of it."""

    async def client(_: int) -> str:
        async with _connection(aim) as (_reader, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            with suppress(ConnectionError, TimeoutError):
                writer.write(_GET % b"/openapi.yaml" * 100)
                await asyncio.sleep(10)
            return "left"

    return await _many(500, client)


async def bodies(aim: Aim) -> Told:
    """64 that begin to send a gigabyte, half of them without saying how long it will be."""

    async def client(number: int) -> str:
        length = f"Content-Length: {1 << 30}" if number % 2 else "Transfer-Encoding: chunked"
        async with _connection(aim) as (reader, writer):
            writer.write(f"POST /inject HTTP/1.1\r\nHost: ovms\r\n{length}\r\n\r\n".encode())
            told = asyncio.create_task(_told(reader))  # first: what was said before a broken connection gets lost
            with suppress(ConnectionError):
                for _ in range(1024):
                    writer.write(
                        (b"" if number % 2 else b"100000\r\n") + bytes(_MIB) + (b"" if number % 2 else b"\r\n")
                    )
                    await writer.drain()
            return await told

    return await _many(64, client)


async def heads(aim: Aim) -> Told:
    """200 with a megabyte of head."""

    async def client(_: int) -> str:
        async with _connection(aim) as (reader, writer):
            told = asyncio.create_task(_told(reader))
            writer.write(b"GET /version HTTP/1.1\r\nHost: ovms\r\nX-Long: ")
            with suppress(ConnectionError):
                for _ in range(256):
                    writer.write(b"x" * 4096)
                    await writer.drain()
                    await asyncio.sleep(0.001)
                writer.write(b"\r\n\r\n")
            return await told

    return await _many(200, client)


async def frames(aim: Aim) -> Told:
    """20 that send 10,000 frames each over a WebSocket: half of them pings, half of them words."""

    async def client(number: int) -> str:
        upgrade = (
            b"GET /events HTTP/1.1\r\nHost: ovms\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        frame = struct.pack("!BB", 0x89 if number % 2 else 0x81, 0x80 | 4) + os.urandom(4) + b"abcd"
        async with _connection(aim) as (reader, writer):
            writer.write(upgrade)
            told = await _told(reader)
            taking = asyncio.create_task(_take_all(reader))
            with suppress(ConnectionError):
                for _ in range(100):
                    writer.write(frame * 100)
                    await writer.drain()
            await asyncio.sleep(1)
            ended = taking.done()
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
            return f"{told}, {'closed' if ended else 'kept'}"

    return await _many(20, client)


async def _take_all(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        while await reader.read(1 << 16):
            pass


KINDS: dict[str, Clients] = {each.__name__: each for each in (connections, slow, stuck, bodies, heads, frames, starts)}
