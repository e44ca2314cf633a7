"""Too many clients, slow ones, stuck ones and talkative ones: each is told so or cut off, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from ovms_supervisor.api.limits import BodyRoom, Limits
from spec.errors import Overloaded
from tests.api.conftest import Daemon
from tests.api.document import PATH, document, violations
from tests.api.fake_supervisor import FakeSupervisor

GET = b"GET %s HTTP/1.1\r\nHost: ovms\r\n\r\n"
PATIENCE_S = 20
DOCUMENT = PATH.read_bytes()

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Limited = Callable[[Limits], Awaitable[Daemon]]


@pytest.fixture
async def limited(supervisor: FakeSupervisor, tmp_path: Path) -> AsyncIterator[Limited]:
    """Makes the daemon with limits that a test can reach."""
    made: list[Daemon] = []

    async def make(limits: Limits) -> Daemon:
        made.append(Daemon(supervisor, tmp_path / "limited.sock", limits=limits))
        await made[-1].start()
        return made[-1]

    yield make
    for daemon in made:
        await daemon.stop()


@asynccontextmanager
async def connected(daemon: Daemon) -> AsyncIterator[Pair]:
    reader, writer = await asyncio.open_unix_connection(daemon.socket)
    try:
        yield reader, writer
    finally:
        writer.close()


async def replied(pair: Pair) -> tuple[int, dict[str, str], Any]:
    """One reply with a body of a given length; a problem is held to the document."""
    async with asyncio.timeout(PATIENCE_S):
        head = (await pair[0].readuntil(b"\r\n\r\n")).decode()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
        body = json.loads(await pair[0].readexactly(int(headers["content-length"])))
    if headers["content-type"].startswith("application/problem+json"):
        assert not violations(document()["components"]["schemas"]["Problem"], body)
    return int(head.split()[1]), headers, body


async def asked(daemon: Daemon, request: bytes) -> tuple[int, dict[str, str], Any]:
    async with connected(daemon) as pair:
        pair[1].write(request)
        return await replied(pair)


async def ended(pair: Pair) -> bytes:
    """What comes until the daemon closes the connection."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await pair[0].read()
        except ConnectionError:
            return b""


async def test_clients_above_the_limit_are_told_to_come_back_and_health_is_told(limited: Limited) -> None:
    daemon = await limited(Limits(connections=3, turned_away=2))
    async with connected(daemon) as first, connected(daemon) as second, connected(daemon) as third:
        for pair in (first, second, third):
            pair[1].write(GET % b"/version")
            assert (await replied(pair))[0] == 200
        status, headers, body = await asked(daemon, GET % b"/version")
        assert (status, body["code"], headers["connection"]) == (503, "daemon.overloaded", "close")
        assert int(headers["retry-after"]) > 0
        status, _, body = await asked(daemon, GET % b"/healthz")
        assert (status, body["status"]) == (200, "ok")
        async with connected(daemon) as fourth, connected(daemon) as fifth:
            fourth[1].write(b"GET /vers")
            fifth[1].write(b"GET /vers")
            async with connected(daemon) as sixth:
                assert await ended(sixth) == b""
            assert await ended(fourth) == await ended(fifth) == b""  # they had their time to say what they want
        second[1].close()
        for _ in range(1000):
            status, _, _ = await asked(daemon, GET % b"/version")
            if status == 200:
                break
            await asyncio.sleep(0.01)
        assert status == 200
        first[1].write(GET % b"/version")
        assert (await replied(first))[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /version HTTP/1.1\r\nHost: ovms\r\nX: " + b"x" * (1 << 20), 431),
        (b"GET /" + b"x" * (1 << 20), 431),
        (b"GET /version HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n", 431),
        (b"SSH-2.0-OpenSSH_9.9\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"POST /start HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /start HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
    ],
)
async def test_a_head_that_is_none_or_has_no_end(daemon: Daemon, head: bytes, status: int) -> None:
    given, _, body = await asked(daemon, head)
    assert (given, body["status"], body["code"]) == (status, status, "request.invalid")
    assert (await asked(daemon, GET % b"/version"))[0] == 200


async def test_a_body_of_a_gigabyte_is_refused_before_it_is_sent(daemon: Daemon) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: ovms\r\nContent-Length: 1073741824\r\n\r\n"
    for path in (b"/start", b"/inject"):
        status, _, body = await asked(daemon, head % path)
        assert (status, body["code"]) == (413, "request.invalid")


async def test_a_body_without_a_length_is_read_up_to_the_limit_and_no_further(daemon: Daemon) -> None:
    async with connected(daemon) as pair:
        pair[1].write(b"POST /start HTTP/1.1\r\nHost: ovms\r\nTransfer-Encoding: chunked\r\n\r\n")
        pair[1].write((b"10000\r\n" + b" " * 65536 + b"\r\n") * 2)
        assert (await replied(pair))[0] == 413
        assert await ended(pair) == b""


async def test_a_body_that_unpacks_to_much_is_not_unpacked(daemon: Daemon) -> None:
    import gzip

    packed = gzip.compress(b" " * (32 << 20))
    head = b"POST /start HTTP/1.1\r\nHost: ovms\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    status, _, body = await asked(daemon, head + packed)
    assert (status, body["code"]) == (400, "request.invalid")


async def test_slow_heads_and_bodies_have_their_time(limited: Limited) -> None:
    daemon = await limited(Limits(idle_s=0.3, body_s=0.3, linger_s=0.1))
    async with connected(daemon) as silent, connected(daemon) as trickling, connected(daemon) as stuck:
        trickling[1].write(b"GET /version HT")
        stuck[1].write(b"POST /start HTTP/1.1\r\nHost: ovms\r\nContent-Length: 10\r\n\r\n{")
        status, _, body = await replied(stuck)
        assert (status, body["code"]) == (408, "request.invalid")
        for pair in (silent, trickling, stuck):
            assert await ended(pair) == b""


async def test_who_takes_nothing_is_cut_off(limited: Limited) -> None:
    daemon = await limited(Limits(stalled_s=0.2))
    async with connected(daemon) as pair:
        pair[1].write(GET % b"/openapi.yaml" * 100)
        await asyncio.sleep(1)  # nothing is taken meanwhile
        rest = await ended(pair)
        assert len(rest) < 100 * len(DOCUMENT)
    assert (await asked(daemon, GET % b"/version"))[0] == 200


def test_long_bodies_share_a_room() -> None:
    room = BodyRoom(100)
    with room.taking(60):
        with pytest.raises(Overloaded), room.taking(60):
            pass
        with room.taking(40):
            pass
    with room.taking(100):
        pass


async def test_long_bodies_are_refused_while_the_room_is_full(limited: Limited) -> None:
    daemon = await limited(Limits(large_bodies_bytes=200_000))
    head = b"POST /inject HTTP/1.1\r\nHost: ovms\r\nContent-Length: 150000\r\n\r\n"
    async with connected(daemon) as first:
        first[1].write(head)
        for _ in range(1000):
            status, headers, body = await asked(daemon, head + b" " * 150_000)
            if status == 503:
                break
            await asyncio.sleep(0.01)
        assert (status, body["code"]) == (503, "daemon.overloaded")
        assert "retry-after" in headers
        first[1].write(b" " * 150_000)
        assert (await replied(first))[0] == 400
    assert (await asked(daemon, head + b" " * 150_000))[0] == 400


async def test_a_client_that_talks_over_a_websocket_is_closed(http: aiohttp.ClientSession, daemon: Daemon) -> None:
    async with http.ws_connect("/events?since=0") as socket:
        try:
            for _ in range(10_000):
                await socket.send_str("hello")
        except ConnectionError:
            pass
        async with asyncio.timeout(PATIENCE_S):
            while (await socket.receive()).type is WSMsgType.TEXT:
                pass
        assert socket.close_code == 1008
    assert (await asked(daemon, GET % b"/healthz"))[0] == 200


async def test_pings_are_answered(http: aiohttp.ClientSession) -> None:
    async with http.ws_connect("/events?since=0", autoping=False) as socket:
        for number in range(100):
            await socket.ping(b"%d" % number)
            async with asyncio.timeout(PATIENCE_S):
                while (message := await socket.receive()).type is WSMsgType.TEXT:
                    pass
            assert (message.type, message.data) == (WSMsgType.PONG, b"%d" % number)
