from __future__ import annotations

import asyncio
import errno
import json
import shutil
from pathlib import Path

import aiohttp
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from ovms_supervisor.client import Client
from ovms_supervisor.loop_lag import LoopLag
from ovms_supervisor.version import VERSION
from spec.api import StartRequest
from spec.errors import DaemonUnreachable, PermissionMissing
from spec.instance import InstanceState
from tests.api.conftest import Daemon
from tests.api.document import PATH
from tests.api.fake_supervisor import FakeSupervisor


async def test_health_version_and_document(client: Client) -> None:
    assert (await client.health()).status == "ok"
    assert (await client.version()).version == VERSION
    assert await client.openapi() == await asyncio.to_thread(PATH.read_text)


async def test_readiness_says_why_not(http: aiohttp.ClientSession, client: Client, supervisor: FakeSupervisor) -> None:
    assert (await client.readiness()).ready
    supervisor.not_ready = ["no runtime is usable"]
    async with http.get("/readyz") as response:
        assert response.status == 503
    assert (await client.readiness()).reasons == ["no runtime is usable"]


async def test_metrics(client: Client, supervisor: FakeSupervisor) -> None:
    instance_id = (await client.start("demo:1")).instance_id
    await supervisor.find(instance_id).become(InstanceState.RUNNING)
    supervisor.find(instance_id).prints(b"one\ntwo\n")
    await client.snapshot(instance_id, "t")
    assert [line async for line in client.logs(instance_id)] == [b"one\ntwo\n"]
    families = {family.name: family for family in text_string_to_metric_families(await client.metrics())}
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert values["ovms_instances", "running"] == 1
    assert values["ovms_instances", "failed"] == 0
    assert values["ovms_log_lines_total",] == 2
    assert values["ovms_log_bytes_total",] == 8
    assert values["ovms_images_resident_bytes",] == 1 << 20
    assert values["ovms_guest_memory_bytes", "private"] == 4096
    assert values["ovms_clone_memory_bytes", "growth"] == 8192
    assert values["ovms_snapshot_pause_seconds_count",] == 1
    assert values["ovms_http_requests_total", "/start", "201", "POST"] == 1
    assert values["ovms_http_requests_total", "/logs/{instance_id}", "200", "GET"] == 1
    assert all(name.startswith(("ovms_", "process_")) for name in families)


async def test_the_log_tells_changes_and_failures_from_reads(
    http: aiohttp.ClientSession, client: Client, supervisor: FakeSupervisor
) -> None:
    with structlog.testing.capture_logs() as logged:
        instance_id = (await client.start("demo:1")).instance_id
        await client.status(instance_id)
        supervisor.not_ready = ["no runtime is usable"]
        await client.readiness()
    told = [(each["log_level"], each["method"], each["path"]) for each in logged if each["event"] == "request"]
    assert told == [
        ("info", "POST", "/start"),
        ("debug", "GET", f"/status/{instance_id}"),
        ("info", "GET", "/readyz"),
    ]


async def test_labels_stay_bounded_whatever_is_asked(http: aiohttp.ClientSession, client: Client) -> None:
    for i in range(20):
        async with http.request("GET", f"/nowhere/{i}"), http.request("MKCOL", f"/status/{i}"):
            pass
    routes = {line.partition("}")[0] for line in (await client.metrics()).splitlines() if "http_requests_total" in line}
    assert len(routes) <= 6


async def test_loop_lag_sees_a_call_that_blocks() -> None:
    import time

    async with LoopLag() as lag:
        await asyncio.sleep(0.3)
        time.sleep(0.4)  # noqa: ASYNC251
        await asyncio.sleep(0.01)
        assert lag.recent_s > 0.1


async def test_no_daemon_is_its_own_error(tmp_path: Path) -> None:
    async with Client(tmp_path / "nothing.sock") as client:
        with pytest.raises(DaemonUnreachable) as caught:
            await client.version()
    assert "nothing.sock" in caught.value.detail
    assert caught.value.remedy


async def test_a_daemon_that_says_nothing_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovms_supervisor.client.client.ANSWER_S", 0.1)
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    server = await asyncio.start_unix_server(silent, tmp_path / "s.sock")
    async with server, Client(tmp_path / "s.sock") as client:
        with pytest.raises(DaemonUnreachable):
            await client.version()
        gone.set()


async def test_a_daemon_that_breaks_off_is_unreachable(tmp_path: Path) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.transport.abort()

    server = await asyncio.start_unix_server(rude, tmp_path / "s.sock")
    async with server, Client(tmp_path / "s.sock") as client:
        with pytest.raises(DaemonUnreachable):
            await client.version()


async def test_a_socket_that_is_not_open_to_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", denied)
    async with Client(tmp_path / "s.sock") as client:
        with pytest.raises(PermissionMissing, match="not open to this user"):
            await client.version()


async def test_starts_are_counted_once_and_by_how_they_ended(daemon: Daemon, supervisor: FakeSupervisor) -> None:
    metrics = daemon.context.metrics
    counting = asyncio.create_task(metrics.count_starts(supervisor))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    good = await supervisor.start(StartRequest(manifest="demo:1"))
    bad = await supervisor.start(StartRequest(manifest="demo:1"))
    for instance, what in ((good, "running"), (bad, "failed"), (good, "paused"), (good, "running")):
        supervisor.events.publish(f"instance.{what}", instance_id=instance.id)
    await asyncio.sleep(0.05)
    counting.cancel()
    for result in ("running", "failed"):
        labels = {"result": result, "boot": "cold", "runtime": "qemu"}
        assert metrics.registry.get_sample_value("ovms_starts_total", labels) == 1
    labels = {"boot": "cold", "runtime": "qemu"}
    assert metrics.registry.get_sample_value("ovms_start_duration_seconds_count", labels) == 1


async def test_transfers_are_counted_with_what_they_moved(daemon: Daemon, supervisor: FakeSupervisor) -> None:
    metrics = daemon.context.metrics
    counting = asyncio.create_task(metrics.count_starts(supervisor))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    supervisor.events.publish("pull.progress", at_bytes=1)
    supervisor.events.publish("pull.done", network_bytes=1000)
    supervisor.events.publish("pull.failed", code="registry.unreachable")
    last = supervisor.events.publish("push.done", sent_bytes=30)
    value = metrics.registry.get_sample_value
    async with asyncio.timeout(30):
        while value("ovms_transfer_bytes_total", {"kind": "push"}) != last.detail["sent_bytes"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    counting.cancel()
    assert value("ovms_transfer_bytes_total", {"kind": "pull"}) == 1000
    for kind, result in (("pull", "done"), ("pull", "failed"), ("push", "done")):
        assert value("ovms_transfers_total", {"kind": kind, "result": result}) == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_on_the_socket(daemon: Daemon, supervisor: FakeSupervisor) -> None:
    async def curl(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "--unix-socket", str(daemon.socket), *arguments, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode()

    started = json.loads(await curl("http://ovms/start", "-d", '{"manifest": "demo:1"}'))
    instance = supervisor.find(started["instance_id"])
    instance.prints(b"hello\r\nworld\n")
    assert await curl(f"http://ovms/logs/{instance.id}") == "hello\nworld\n"
    following = asyncio.create_task(curl("-N", f"http://ovms/logs/{instance.id}?follow=true&tail=1"))
    async with asyncio.timeout(20):
        while not daemon.context.streams._endings:  # noqa: ASYNC110 - curl has not come yet
            await asyncio.sleep(0.01)
    instance.prints(b"live\nlast words")
    await instance.become(InstanceState.STOPPED)
    assert await following == "world\nlive\nlast words\n"
    assert json.loads(await curl(f"http://ovms/status/{instance.id[:8]}"))["status"] == "stopped"
    assert (await curl("-o", "/dev/null", "-w", "%{http_code}", "http://ovms/status/none")) == "404"
