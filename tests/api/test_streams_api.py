"""Logs and events over plain HTTP and WebSocket, with clients that are slow, stuck, or leave."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest

from ovms_supervisor.client import Client
from spec.api import LogEnd, LogGap, LogLine
from spec.errors import DaemonUnreachable, InstanceNotFound
from spec.instance import InstanceState
from tests.api.conftest import Daemon, problem
from tests.api.document import check_frame
from tests.api.fake_supervisor import FakeInstance, FakeSupervisor


@pytest.fixture
async def instance(client: Client, supervisor: FakeSupervisor) -> FakeInstance:
    return supervisor.find((await client.start("demo:1")).instance_id)


async def test_plain_is_the_guests_bytes(http: aiohttp.ClientSession, instance: FakeInstance) -> None:
    instance.prints(b"one\r\n\xff\xfe\n" + b"x" * 20_000 + b"\nunfinished")
    async with http.get(f"/logs/{instance.id}") as response:
        assert response.content_type == "text/plain"
        assert await response.read() == b"one\n\xff\xfe\n" + b"x" * 20_000 + b"\n"
    async with http.get(f"/logs/{instance.id}?timestamps=true&tail=3") as response:
        lines = (await response.read()).splitlines()
    assert [line.partition(b" ")[2] for line in lines] == [b"\xff\xfe", b"x" * 20_000]
    assert all(len(line.partition(b" ")[0]) == len("2025-09-09T00:00:00.123456789Z") for line in lines)


async def test_following_goes_on_live_and_ends_with_the_instance(client: Client, instance: FakeInstance) -> None:
    instance.prints(b"0\n")
    seen: list[bytes] = []

    async def follow() -> None:
        async for chunk in client.logs(instance.id, follow=True):
            seen.append(chunk)  # noqa: PERF401

    following = asyncio.create_task(follow())
    for i in range(1, 30):
        await asyncio.sleep(0.003)
        instance.prints(b"%d\n" % i)
    await instance.become(InstanceState.STOPPED)
    await asyncio.wait_for(following, 5)
    assert b"".join(seen) == b"".join(b"%d\n" % i for i in range(30))


async def test_json_lines(http: aiohttp.ClientSession, client: Client, instance: FakeInstance) -> None:
    instance.prints(b"one\n\xff\n")
    await instance.become(InstanceState.FAILED)
    items = [item async for item in client.log_lines(instance.id)]
    assert [type(item) for item in items] == [LogLine, LogLine, LogEnd]
    assert items[1].data == b"\xff"  # type: ignore[union-attr]
    async with http.get(f"/logs/{instance.id}", headers={"Accept": "application/x-ndjson"}) as response:
        frames = [check_frame(line, "LogItem") for line in (await response.read()).splitlines()]
    assert frames[-1] == {"end": "failed"}


async def test_websocket_frames(http: aiohttp.ClientSession, instance: FakeInstance) -> None:
    instance.prints(b"before\n")
    async with http.ws_connect(f"/logs/{instance.id}?follow=true") as ws:
        assert check_frame(await ws.receive_str(), "LogItem")["line"] == "before"
        instance.prints(b"after\n\xff\n")
        assert check_frame(await ws.receive_str(), "LogItem")["seq"] == 2
        frame = check_frame(await ws.receive_str(), "LogItem")
        assert (frame["seq"], frame["data"]) == (3, "/w==")
        await instance.become(InstanceState.STOPPED)
        assert check_frame(await ws.receive_str(), "LogItem") == {"end": "stopped"}
        assert (await ws.receive()).type == aiohttp.WSMsgType.CLOSE
        assert ws.close_code == 1000


async def test_websocket_batches(http: aiohttp.ClientSession, instance: FakeInstance) -> None:
    instance.prints(b"".join(b"%d\n" % i for i in range(300)))
    async with http.ws_connect(f"/logs/{instance.id}?batch=true") as ws:
        frame = await ws.receive_str()
        assert [check_frame(line, "LogItem")["line"] for line in frame.split("\n")] == [str(i) for i in range(300)]


async def test_a_refused_upgrade_is_a_problem(http: aiohttp.ClientSession, client: Client) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await http.ws_connect("/logs/nobody")
    assert caught.value.status == 404
    with pytest.raises(InstanceNotFound):
        _ = [chunk async for chunk in client.logs("nobody")]
    async with http.get("/logs/nobody?follow=1") as response:
        assert (await problem(response))["code"] == "instance.not_found"


async def test_the_daemon_going_away_closes_sockets_and_breaks_streams_off(
    daemon: Daemon, http: aiohttp.ClientSession, client: Client, instance: FakeInstance
) -> None:
    instance.prints(b"one\n")

    async def follow() -> None:
        async with aclosing(client.logs(instance.id, follow=True)) as chunks:
            async for _ in chunks:
                pass

    following = asyncio.create_task(follow())
    async with http.ws_connect(f"/logs/{instance.id}?follow=true") as ws, http.ws_connect("/events") as events:
        await ws.receive_str()
        stopping = asyncio.create_task(daemon.stop())
        for socket_ in (ws, events):
            assert (await socket_.receive(timeout=5)).type == aiohttp.WSMsgType.CLOSE
            assert socket_.close_code == 1001
        with pytest.raises(DaemonUnreachable):
            await following
        await asyncio.wait_for(stopping, 5)


async def test_readers_that_leave_leave_nothing_behind(
    daemon: Daemon, http: aiohttp.ClientSession, instance: FakeInstance
) -> None:
    instance.prints(b"one\n")
    await asyncio.sleep(0.05)
    before = await asyncio.to_thread(_descriptors)
    for _ in range(5):
        async with http.ws_connect(f"/logs/{instance.id}?follow=true") as ws:
            await ws.receive_str()
        response = await http.get(f"/logs/{instance.id}?follow=true")
        await response.content.readany()
        response.close()
    async with asyncio.timeout(5):
        while await asyncio.to_thread(_descriptors) > before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert not daemon.context.streams._endings


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _raw(daemon: Daemon, path: str) -> socket.socket:
    """A client that asks and then takes nothing."""
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, str(daemon.socket))
    await loop.sock_sendall(raw, f"GET {path} HTTP/1.1\r\nHost: ovms\r\n\r\n".encode())
    return raw


async def test_a_stuck_client_is_cut_off_and_holds_nobody_up(
    daemon: Daemon, client: Client, instance: FakeInstance
) -> None:
    daemon.context.stall_s = 0.3
    instance.prints(b"x" * 99 + b"\n")
    with await _raw(daemon, f"/logs/{instance.id}?follow=true"):
        for _ in range(40):
            instance.prints((b"y" * 99 + b"\n") * 500)
            await asyncio.sleep(0.005)
        assert (await client.version()).version
        async with asyncio.timeout(5):
            while daemon.context.streams._endings:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_slow_client_is_told_what_it_lost(daemon: Daemon, instance: FakeInstance) -> None:
    """The kernel's and our buffers fill, the log moves on by more than it keeps, and the client reads again."""
    instance.prints(b"0\n")
    with await _raw(daemon, f"/logs/{instance.id}?follow=true&format=json") as raw:
        printed = 1
        for _ in range(80):
            instance.prints(b"".join(b"%d " % (printed + i) + b"z" * 90 + b"\n" for i in range(300)))
            printed += 300
            await asyncio.sleep(0.005)
        await instance.become(InstanceState.STOPPED)
        loop = asyncio.get_running_loop()
        received = bytearray()
        while not received.endswith(b"0\r\n\r\n"):
            received += await asyncio.wait_for(loop.sock_recv(raw, 1 << 20), 5)
    lines = [line for line in received.split(b"\n") if line.startswith(b"{")]
    expected, gaps = 1, 0
    for line in lines[:-1]:
        item = json.loads(line)
        assert item["seq"] == expected
        expected += item.get("lost", 1)
        gaps += "lost" in item
    assert json.loads(lines[-1]) == {"end": "stopped"}
    assert expected == printed + 1
    assert gaps >= 1


async def test_a_gap_in_a_plain_stream_is_a_line_of_ours(client: Client, instance: FakeInstance) -> None:
    instance.prints(b"0123456789\n" * 50_000)
    text = b"".join([chunk async for chunk in client.logs(instance.id)])
    first, _, rest = text.partition(b"\n")
    assert first.startswith(b"[")
    assert b" lines are missing here: " in first
    lost = int(first[1:].split()[0])
    assert rest == b"0123456789\n" * (50_000 - lost)
    items = [item async for item in client.log_lines(instance.id)]
    assert items[0] == LogGap(seq=1, lost=lost, reason=items[0].reason)  # type: ignore[union-attr]


async def test_events_over_json_lines_and_websocket(
    http: aiohttp.ClientSession, client: Client, supervisor: FakeSupervisor
) -> None:
    supervisor.events.publish("instance.running", instance_id="a", cause="test", total_ms=1.5)
    async with aclosing(client.events(since=0)) as events:
        first = await anext(events)
        assert (first.seq, first.type, first.detail) == (1, "instance.running", {"total_ms": 1.5})
        supervisor.events.publish("instance.removed", instance_id="a")
        assert (await anext(events)).type == "instance.removed"
    async with http.ws_connect("/events?since=1") as ws:
        assert check_frame(await ws.receive_str(), "Event")["type"] == "instance.removed"
        supervisor.events.publish("instance.starting", instance_id="b", name="web")
        assert check_frame(await ws.receive_str(), "Event")["name"] == "web"


async def test_who_has_the_head_of_the_reply_misses_no_event(
    http: aiohttp.ClientSession, supervisor: FakeSupervisor
) -> None:
    async with http.get("/events") as response:
        supervisor.events.publish("instance.starting", instance_id="a")
        line = await asyncio.wait_for(response.content.readline(), 5)
        assert json.loads(line)["instance_id"] == "a"
