"""The daemon as a process with real QEMU guests: the whole contract once, over the client, curl and WebSocket."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from cache.pack import PackRequest, pack
from cache.store import Store
from ovms_supervisor.client import Client
from spec.api import LogEnd, LogLine, MmioWrite, Overrides
from spec.errors import DaemonRunning, InstanceNotFound, WrongState
from spec.manifest import Device
from spec.reference import parse_reference
from tests.api.document import check_frame

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
]

GUEST = Path(__file__).parents[1] / "guest" / "build"
SHARED_BYTES = 1 << 20


@pytest.fixture(scope="module")
def directory(tmpfs_mount: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """On a tmpfs and short (sockets); with a store that has the test guest as ``guest:1``."""
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("the test guest is built with GNU binutils, which are not installed")
    kernel = tmp_path_factory.mktemp("kernel") / "guest.elf"
    subprocess.run([GUEST, kernel], check=True, timeout=30)
    directory = Path(tempfile.mkdtemp(prefix="ovms-", dir=tmpfs_mount))
    store = Store(directory / "root")
    store.create()
    device = Device(type="ivshmem", name="mmio0", size=SHARED_BYTES)
    request = PackRequest(name=parse_reference("guest:1"), kernel=kernel, memory_bytes=32 << 20, devices=(device,))
    pack(store, request)
    yield directory
    shutil.rmtree(directory)


class Process:
    """``ovm serve`` as somebody starts it in a terminal or a unit."""

    def __init__(self, directory: Path, **more: str) -> None:
        self.directory = directory
        self.socket = directory / "run" / "ovms.sock"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setblocking(False)
        notify_path = directory / "notify.sock"
        notify_path.unlink(missing_ok=True)
        self._notify.bind(str(notify_path))
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OVMS_")},
            "NOTIFY_SOCKET": str(notify_path),
            "OVMS_IMAGE_DIR": str(directory / "images"),
            "OVMS_MLOCK": "best-effort",
            **more,
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, *more: str) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ovms_supervisor.cli", "--config", os.devnull),
            *("--root", str(self.directory / "root"), "--run-dir", str(self.directory / "run"), "serve", *more),
            env=self._environment,
            stderr=subprocess.PIPE,
        )
        await self.notified(b"READY=1")

    async def notified(self, what: bytes) -> None:
        assert self.process is not None
        said = asyncio.ensure_future(self._next_notice())
        ended = asyncio.ensure_future(self.process.wait())
        await asyncio.wait((said, ended), timeout=20, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not said.done():
            said.cancel()
            assert self.process.stderr
            pytest.fail((await self.process.stderr.read()).decode())
        assert said.result().startswith(what)

    async def _next_notice(self) -> bytes:
        """What the daemon says, but for how far it has come with taking over machines."""
        while True:
            said = await asyncio.get_running_loop().sock_recv(self._notify, 4096)
            if not said.startswith(b"EXTEND_TIMEOUT_USEC="):
                return said

    async def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        _, log = await asyncio.wait_for(self.process.communicate(), 30)
        return log.decode()

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._notify.close()
        if self.process and self.process.returncode is None:
            await self.end(signal.SIGKILL)


def check_log(log: str) -> None:
    """The daemon logs JSON lines, none of which is an error."""
    print(log)
    levels = {json.loads(line)["level"] for line in log.splitlines() if line.startswith("{")}
    assert levels <= {"debug", "info", "warning"}
    assert all(line.startswith(("{", "ovm: the environment variable")) for line in log.splitlines())


@pytest.fixture
def event_loop() -> str:
    """What the daemon runs on: its default is whatever is installed."""
    return "asyncio"


on_every_loop = pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])


@pytest.fixture
async def process(directory: Path, event_loop: str) -> AsyncIterator[Process]:
    if event_loop == "uvloop":
        pytest.importorskip("uvloop")
    async with Process(directory, OVMS_EVENT_LOOP=event_loop) as process:
        await process.start("--on-exit", "stop")
        yield process
        log = await process.end()
        check_log(log)
        assert f'"event_loop": "{event_loop}"' in log
        assert process.process is not None
        assert process.process.returncode == 0
        assert not process.socket.exists()


@pytest.fixture
async def client(process: Process) -> AsyncIterator[Client]:
    async with Client(process.socket) as client:
        yield client


@on_every_loop
async def test_the_daemon_comes_before_its_guests(process: Process, client: Client) -> None:
    assert process.process is not None
    started = await client.start("guest:1", wait="running")
    assert started.info is not None
    assert started.info.pid is not None
    own = os.getpriority(os.PRIO_PROCESS, 0)
    niceness = os.getpriority(os.PRIO_PROCESS, process.process.pid)
    assert niceness == (-10 if os.geteuid() == 0 and own > -10 else own)
    assert os.getpriority(os.PRIO_PROCESS, started.info.pid) == own
    await client.remove(started.instance_id, force=True)


async def test_a_guest_from_start_to_removal(process: Process, client: Client) -> None:
    started = await client.start("guest:1", Overrides(name="web"), wait="running")
    assert started.status == "running"
    assert started.info is not None
    assert started.info.metrics.start is not None

    connector = aiohttp.UnixConnector(str(process.socket))
    async with (
        aiohttp.ClientSession("http://ovms", connector=connector) as http,
        http.ws_connect("/logs/web?follow=true") as ws,
    ):
        numbers: list[int] = []
        counts: list[int] = []
        while len(counts) < 20:
            frame = check_frame(await ws.receive_str(timeout=20), "LogItem")
            numbers.append(frame["seq"])
            if frame["line"].startswith("tick"):
                counts.append(int(frame["line"].split("count=")[1][:8], 16))
    assert numbers == list(range(1, len(numbers) + 1))
    assert counts == list(range(counts[0], counts[0] + 20))

    await client.inject("web", [MmioWrite(device="mmio0", data=b"\x01\x02\x03\x04\x05\x06\x07\x08")])
    [echoed] = await client.inject("web", [MmioWrite(device="mmio0", read=8)])
    assert echoed == bytes(range(1, 9))
    async for item in client.log_lines("web", follow=True, tail=1):
        if isinstance(item, LogLine) and "shm=0102030405060708" in item.line:
            break

    assert await client.pause("web") == "paused"
    [silent] = [[item.seq async for item in client.log_lines("web", tail=1) if isinstance(item, LogLine)]]
    await asyncio.sleep(0.3)
    assert silent == [item.seq async for item in client.log_lines("web", tail=1) if isinstance(item, LogLine)]
    assert await client.resume("web") == "running"

    assert await client.stop("web", timeout_s=0, wait="stopped") == "stopped"
    items = [item async for item in client.log_lines("web", follow=True)]
    assert items[-1] == LogEnd(end="stopped")
    with pytest.raises(WrongState):
        await client.stop("web")
    await client.remove("web")
    with pytest.raises(InstanceNotFound):
        await client.status("web")


@on_every_loop
async def test_a_snapshot_and_its_clones(client: Client) -> None:
    await client.start("guest:1", Overrides(name="golden"), wait="running")
    await asyncio.sleep(0.3)
    made = await client.snapshot("golden", "snap")
    assert made.snapshot_ref.startswith("sha256:")
    clones = await asyncio.gather(*(client.start(made.reference, wait="running") for _ in range(3)))
    boots = {clone.info.boot for clone in clones if clone.info}
    assert boots == {"restore"}
    for clone in clones:
        async for item in client.log_lines(clone.instance_id, follow=True):
            if isinstance(item, LogLine) and item.line.startswith("tick"):
                break
    text = await client.metrics()
    assert 'ovms_starts_total{boot="restore",result="running",runtime="qemu"} 3.0' in text
    assert "ovms_snapshot_pause_seconds_count 1.0" in text
    for each in await client.instances():
        await client.remove(each.instance_id, force=True)
    assert await client.instances() == []


async def test_events_tell_the_life_of_a_guest(client: Client) -> None:
    events = client.events(since=0)
    started = await client.start("guest:1", wait="running")
    await client.stop(started.instance_id, timeout_s=0, wait="stopped")
    await client.remove(started.instance_id)
    types = []
    async for event in events:
        if event.instance_id == started.instance_id:
            types.append(event.type)
        if event.type == "instance.removed":
            break
    await events.aclose()
    assert [each for each in types if each.startswith("instance.")] == [
        "instance.starting",
        "instance.running",
        "instance.stopping",
        "instance.stopped",
        "instance.removed",
    ]


async def test_a_second_daemon_is_refused_and_harms_nobody(process: Process, client: Client) -> None:
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ovms_supervisor.cli", "--config", os.devnull),
        *("--root", str(process.directory / "root"), "--run-dir", str(process.directory / "run"), "serve"),
        stderr=subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(second.communicate(), 20)
    assert second.returncode not in (0, None)
    assert "answers on" in said.decode()
    assert DaemonRunning.default_remedy.split(",")[0] in said.decode()
    assert (await client.health()).status == "ok"


async def test_logs_go_on_without_a_gap_over_a_restart_of_the_daemon(directory: Path) -> None:
    async with Process(directory) as first, Client(first.socket) as client:
        await first.start("--on-exit", "leave")
        instance_id = (await client.start("guest:1", wait="running")).instance_id
        async for item in client.log_lines(instance_id, follow=True):
            if isinstance(item, LogLine) and item.seq >= 5:
                break
        await first.end(signal.SIGKILL)
    await asyncio.sleep(0.5)
    async with Process(directory) as second, Client(second.socket) as client:
        await second.start("--on-exit", "stop")
        assert (await client.status(instance_id)).status == "running"
        await asyncio.sleep(0.3)
        items = [item async for item in client.log_lines(instance_id)]
        assert [item.seq for item in items if isinstance(item, LogLine)] == list(range(1, len(items) + 1))
        counts = [
            int(item.line.split("count=")[1][:8], 16)
            for item in items
            if isinstance(item, LogLine) and item.line.startswith("tick")
        ]
        assert len(counts) > 10
        assert counts == list(range(counts[0], counts[0] + len(counts)))
        await client.remove(instance_id, force=True)
        check_log(await second.end())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_as_in_the_readme(process: Process, client: Client) -> None:
    async def curl(*arguments: str) -> str:
        child = await asyncio.create_subprocess_exec(
            "curl", "-sS", "--unix-socket", str(process.socket), *arguments, stdout=subprocess.PIPE
        )
        output, _ = await child.communicate()
        return output.decode()

    body = '{"manifest": "guest:1", "overrides": {"name": "curled", "kernel_args": "mode=off"}}'
    assert '"status":"running"' in await curl("http://ovms/start?wait=running", "-d", body)
    console = await curl("http://ovms/logs/curled?follow=true")
    assert console.startswith("boot nonce=")
    assert '"status":"stopped"' in await curl("http://ovms/status/curled")
    assert await curl("-X", "DELETE", "http://ovms/instances/curled") == ""
