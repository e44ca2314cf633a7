"""Any bytes on a connection, as requests and as frames: the daemon answers or hangs up, and goes on."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.api.conftest import Daemon

SEEDS = (
    b"GET /instances?all=true HTTP/1.1\r\nHost: ovms\r\n\r\n",
    b'POST /start HTTP/1.1\r\nHost: ovms\r\nContent-Length: 26\r\n\r\n{"manifest": "demo:base"} ',
    b'POST /inject HTTP/1.1\r\nHost: ovms\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n',
    b"DELETE /instances/%77eb?force=true HTTP/1.1\r\nHost: ovms\r\nX-Request-Id: 1\r\n\r\n",
    b"GET /logs/web?tail=5&follow=false HTTP/1.1\r\nHost: ovms\r\n\r\n",
)
UPGRADE = (
    b"GET /events?since=0 HTTP/1.1\r\nHost: ovms\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def mutated(seed: bytes, chance: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.randint(0, 4)):
        at, length = chance.randint(0, len(data)), chance.randint(1, 12)
        data[at : at + chance.choice((0, length))] = chance.choice(
            (b"", chance.randbytes(length), b"\r\n", b"9" * length)
        )
    return bytes(data)


def frame(chance: random.Random) -> bytes:
    """Of any kind, with any flags, masked or not, of a length that may be a lie."""
    payload = chance.randbytes(chance.choice((0, 1, 5, 125, 126, 2000)))
    length = len(payload) if chance.random() < 0.8 else chance.randint(0, 1 << 20)
    masked = 0x80 if chance.random() < 0.9 else 0
    first = chance.choice((0x81, 0x82, 0x88, 0x89, 0x8A, 0x01, 0x00, chance.randint(0, 255)))
    if length < 126:
        head = bytes((first, masked | length))
    elif length < 1 << 16:
        head = bytes((first, masked | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((first, masked | 127)) + length.to_bytes(8, "big")
    return head + (chance.randbytes(4) if masked else b"") + payload


async def send(daemon: Daemon, data: bytes, *, limit_s: float = 0.02) -> bytes:
    """What comes back until the daemon has hung up, or has nothing more to say."""
    reader, writer = await asyncio.open_unix_connection(daemon.socket)
    said = b""
    try:
        writer.write(data)
        async with asyncio.timeout(limit_s):
            while piece := await reader.read(65536):
                said += piece
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()
    return said


async def healthy(daemon: Daemon) -> bool:
    reader, writer = await asyncio.open_unix_connection(daemon.socket)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: ovms\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(20):
        said = await reader.read()
    writer.close()
    return said.startswith(b"HTTP/1.1 200 ")


async def test_any_bytes_as_requests(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(1)
    for _ in range(150):
        said = await send(daemon, mutated(chance.choice(SEEDS), chance))
        assert said[:5] in (b"", b"HTTP/")
        assert b" 500 " not in said
    assert await healthy(daemon)
    assert [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")] == []


async def test_any_bytes_as_frames(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(2)
    for _ in range(100):
        said = await send(daemon, UPGRADE + b"".join(frame(chance) for _ in range(chance.randint(1, 20))))
        assert said[:12] in (b"", b"HTTP/1.1 101")
    closing = b"\x88\x80abcd"
    assert (await send(daemon, UPGRADE + closing, limit_s=20)).startswith(b"HTTP/1.1 101")
    assert await healthy(daemon)
    assert [each for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")] == []
