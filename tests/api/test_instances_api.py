from __future__ import annotations

import asyncio

import aiohttp
import pytest

from ovms_supervisor.client import Client
from spec.api import MAX_INJECT_BYTES, MmioWrite, Overrides
from spec.errors import (
    IncompatibleSnapshot,
    InstanceNotFound,
    InternalError,
    InvalidRequest,
    NoSpace,
    OutOfRange,
    VmmTimeout,
    WrongState,
)
from spec.instance import InstanceState
from tests.api.conftest import Daemon, problem
from tests.api.fake_supervisor import DIGEST, FakeSupervisor


async def test_the_bodies_of_the_rfc(http: aiohttp.ClientSession, supervisor: FakeSupervisor) -> None:
    async with http.post("/start", json={"manifest": "demo:1"}) as response:
        started = await response.json()
        assert response.status == 201
        assert response.headers["Location"] == f"/status/{started['instance_id']}"
    assert set(started) == {"instance_id", "status"}
    assert started["status"] == "starting"
    instance_id = started["instance_id"]
    async with http.get(f"/status/{instance_id}") as response:
        assert (await response.json())["metrics"]["start"]["total_ms"] == 12.5
    async with http.post("/snapshot", json={"instance_id": instance_id, "tag": "fastboot"}) as response:
        assert (await response.json())["snapshot_ref"] == DIGEST
    async with http.post(
        "/inject", json={"instance_id": instance_id, "content": {"mmio": {"device": "mmio0", "data": "aGk="}}}
    ) as response:
        assert await response.json() == {"status": "ok"}
    async with http.post("/stop", json={"instance_id": instance_id}) as response:
        assert await response.json() == {"status": "stopping"}
    assert supervisor.calls == ["start", "snapshot fastboot", "inject", "stop None"]


async def test_waiting_for_running_gives_the_info(client: Client, supervisor: FakeSupervisor) -> None:
    waiting = asyncio.create_task(client.start("demo:1", Overrides(name="web"), wait="running"))
    await _until_there(supervisor)
    await supervisor.find("web").become(InstanceState.RUNNING)
    reply = await waiting
    assert reply.status == "running"
    assert reply.info is not None
    assert reply.info.name == "web"


async def _until_there(supervisor: FakeSupervisor) -> None:
    async with asyncio.timeout(5):
        while not supervisor.instances():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_start_that_fails_while_waited_for_is_its_error(client: Client, supervisor: FakeSupervisor) -> None:
    waiting = asyncio.create_task(client.start("demo:1", wait="running"))
    await _until_there(supervisor)
    [instance] = supervisor.instances()
    await instance.become(InstanceState.FAILED, IncompatibleSnapshot("made by another VMM", ours="qemu 7.2"))
    with pytest.raises(IncompatibleSnapshot) as caught:
        await waiting
    assert caught.value.fields == {"ours": "qemu 7.2", "instance_id": instance.id}
    assert "cold" in caught.value.remedy


async def test_a_wait_that_is_too_short_tells_the_status_as_it_is(client: Client) -> None:
    reply = await client.start("demo:1", wait="running", timeout_s=0.05)
    assert reply.status == "starting"


async def test_stop_waits_for_stopped(client: Client, supervisor: FakeSupervisor) -> None:
    instance_id = (await client.start("demo:1")).instance_id
    assert await client.stop(instance_id, timeout_s=3) == "stopping"
    waiting = asyncio.create_task(client.stop(instance_id, wait="stopped"))
    await asyncio.sleep(0.05)
    await supervisor.find(instance_id).become(InstanceState.STOPPED)
    assert await waiting == "stopped"
    with pytest.raises(WrongState) as caught:
        await client.stop(instance_id)
    assert caught.value.fields == {"status": "stopped"}
    assert supervisor.calls[1] == "stop 3.0"


async def test_pause_resume_remove_and_list(client: Client, supervisor: FakeSupervisor) -> None:
    first = (await client.start("demo:1", Overrides(name="a"))).instance_id
    second = (await client.start("demo:1", Overrides(name="b"))).instance_id
    assert await client.pause("a") == "paused"
    assert await client.resume("a") == "running"
    with pytest.raises(WrongState):
        await client.remove("a")
    await supervisor.find("a").become(InstanceState.STOPPED)
    assert [each.instance_id for each in await client.instances()] == [first, second]
    assert [each.instance_id for each in await client.instances(everything=False)] == [second]
    assert [each.name for each in await client.instances(status=InstanceState.STOPPED)] == ["a"]
    await client.remove("a")
    await client.remove(second[:8], force=True)
    assert await client.instances() == []
    with pytest.raises(InstanceNotFound) as caught:
        await client.status("a")
    assert caught.value.remedy


async def test_inject_writes_and_reads(client: Client) -> None:
    instance_id = (await client.start("demo:1")).instance_id
    read = await client.inject(
        instance_id,
        [
            MmioWrite(device="mmio0", offset=5, data=b"\xff\x00"),
            MmioWrite(device="mmio0", offset=7, text="grüß"),
            MmioWrite(device="mmio0", offset=5, read=8),
        ],
    )
    assert read == [b"\xff\x00" + "grüß".encode()]
    with pytest.raises(OutOfRange) as caught:
        await client.inject(instance_id, [MmioWrite(device="mmio0", offset=4096, data=b"x")])
    assert caught.value.fields == {"size_bytes": 4096}


@pytest.mark.parametrize(
    "mmio",
    [
        [],
        {"device": "mmio0"},
        {"device": "mmio0", "text": "a", "read": 1},
        [{"device": "mmio0", "read": MAX_INJECT_BYTES}, {"device": "mmio0", "read": 1}],
        {"device": "mmio0", "data": "not base64!"},
        {"device": "mmio0", "offset": -1, "read": 1},
    ],
)
async def test_accesses_that_cannot_be_meant(http: aiohttp.ClientSession, client: Client, mmio: object) -> None:
    instance_id = (await client.start("demo:1")).instance_id
    async with http.post("/inject", json={"instance_id": instance_id, "content": {"mmio": mmio}}) as response:
        assert response.status == 400
        assert (await problem(response))["fields"]["path"].startswith("$.content.mmio")


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/start", {}, "$"),
        ("/start", {"manifest": ""}, "$.manifest"),
        ("/start", {"manifest": "a", "override": {}}, "$"),
        ("/start", {"manifest": "a", "overrides": {"cpus": 0}}, "$.overrides.cpus"),
        ("/start", {"manifest": "a", "overrides": {"name": "No Capitals"}}, "$.overrides.name"),
        ("/start", {"manifest": "a", "overrides": {"runtime": "xen"}}, "$.overrides.runtime"),
        ("/start", [], "$"),
        ("/stop", {"instance_id": "abcd", "timeout_s": -1}, "$.timeout_s"),
        ("/snapshot", {"instance_id": "abcd"}, "$"),
        ("/pause", {"instance_id": 5}, "$.instance_id"),
    ],
)
async def test_wrong_bodies_are_refused_with_the_place(
    http: aiohttp.ClientSession, supervisor: FakeSupervisor, path: str, body: object, where: str
) -> None:
    async with http.post(path, json=body) as response:
        assert response.status == 400
        document = await problem(response)
    assert (document["code"], document["fields"]["path"]) == ("request.invalid", where)
    assert supervisor.calls == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"manifest": "\xff"}', b"null"])
async def test_bodies_that_are_not_json(http: aiohttp.ClientSession, body: bytes) -> None:
    async with http.post("/start", data=body) as response:
        assert response.status == 400
        assert (await problem(response))["code"] == "request.invalid"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_long_is_not_read(http: aiohttp.ClientSession, chunked: bool) -> None:
    async def chunks() -> object:
        for _ in range(32):
            yield b" " * 4096

    async with http.post("/start", data=chunks() if chunked else b" " * (128 << 10)) as response:
        assert response.status == 413
        assert (await problem(response))["code"] == "request.invalid"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/start?wait=stopped"),
        ("POST", "/start?wait=running&timeout=-1"),
        ("POST", "/start?wait=running&timeout=nan"),
        ("POST", "/start?timeout=5"),
        ("POST", "/stop?force=true"),
        ("GET", "/instances?all=yes"),
        ("GET", "/instances?all=true&all=true"),
        ("GET", "/instances?status=gone"),
        ("GET", "/status/abcd?verbose=1"),
        ("GET", "/logs/abcd?tail=-1"),
        ("GET", "/logs/abcd?since=yesterday"),
        ("GET", "/events?since=abc"),
        ("GET", "/version?x"),
    ],
)
async def test_wrong_queries_are_refused(http: aiohttp.ClientSession, method: str, path: str) -> None:
    async with http.request(method, path, json={"manifest": "a"} if method == "POST" else None) as response:
        assert response.status == 400
        document = await problem(response)
    assert document["code"] == "request.invalid"
    assert document["instance"] == path.partition("?")[0]


async def test_unknown_paths_and_methods_are_problems_too(http: aiohttp.ClientSession) -> None:
    async with http.get("/nonsense") as response:
        assert (response.status, (await problem(response))["code"]) == (404, "not_found")
    async with http.put("/start") as response:
        assert (response.status, (await problem(response))["code"]) == (405, "request.invalid")
        assert response.headers["Allow"] == "POST"
    async with http.get("/status/nobody") as response:
        assert (response.status, (await problem(response))["code"]) == (404, "instance.not_found")


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        (NoSpace("the tmpfs is full"), 507, NoSpace),
        (VmmTimeout("no answer in 5 s"), 504, VmmTimeout),
        (OSError(28, "No space left on device", "/run/x"), 507, NoSpace),
        (NoSpace("no room in /srv/\udcff", path="/srv/\udcff"), 507, NoSpace),
        (RuntimeError("secret detail"), 500, InternalError),
    ],
)
async def test_faults_become_their_errors(
    http: aiohttp.ClientSession,
    client: Client,
    supervisor: FakeSupervisor,
    fault: Exception,
    status: int,
    kind: type[Exception],
) -> None:
    supervisor.fault = fault
    async with http.post("/start", json={"manifest": "a"}, headers={"X-Request-Id": "trace-1"}) as response:
        assert response.status == status
        assert response.headers["X-Request-Id"] == "trace-1"
        document = await problem(response)
        assert "secret" not in str(document)
        if kind is InternalError:
            assert document["fields"] == {"trace_id": "trace-1"}
    with pytest.raises(kind):
        await client.start("a")


async def test_a_client_that_leaves_does_not_stop_what_it_asked_for(
    http: aiohttp.ClientSession, client: Client, supervisor: FakeSupervisor
) -> None:
    instance_id = (await client.start("demo:1")).instance_id
    for path, body in (
        ("/start?wait=running", {"manifest": "demo:1"}),
        ("/snapshot", {"instance_id": instance_id, "tag": "t"}),
    ):
        supervisor.hold.clear()
        supervisor.entered.clear()
        request = asyncio.create_task(http.post(path, json=body))
        await supervisor.entered.wait()
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await asyncio.sleep(0.05)
        supervisor.hold.set()
        await asyncio.sleep(0.05)
    assert supervisor.calls == ["start", "start", "snapshot t"]
    assert len(supervisor.instances()) == 2


async def test_a_change_under_way_is_finished_before_the_daemon_ends(
    daemon: Daemon, client: Client, supervisor: FakeSupervisor
) -> None:
    supervisor.hold.clear()
    starting = asyncio.create_task(client.start("demo:1"))
    await supervisor.entered.wait()
    stopping = asyncio.create_task(daemon.stop())
    await asyncio.sleep(0.1)
    supervisor.hold.set()
    assert (await starting).status == "starting"
    await stopping


async def test_waiting_ends_when_the_daemon_stops(daemon: Daemon, client: Client) -> None:
    waiting = asyncio.create_task(client.start("demo:1", wait="running"))
    await asyncio.sleep(0.1)
    await daemon.stop()
    assert (await waiting).status == "starting"


async def test_an_unknown_wait_is_refused_before_anything_happens(client: Client, supervisor: FakeSupervisor) -> None:
    with pytest.raises(InvalidRequest):
        await client.start("demo:1", wait="paused")  # type: ignore[arg-type]
    assert supervisor.calls == []
