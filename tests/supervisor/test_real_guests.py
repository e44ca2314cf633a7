"""Real VMMs under the supervisor: boot, snapshot, clones, crash, re-adoption, and nothing left."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from cache.resident import ResidentImages
from cache.store import Store
from ovms_supervisor.instance import Instance
from ovms_supervisor.supervisor import Supervisor
from spec.api import LogLine, MmioWrite, WarmRequest
from spec.instance import InstanceState
from spec.reference import parse_reference
from tests.supervisor.conftest import Site, ended, start
from tests.supervisor.test_snapshots import release_all
from vmm.driver import Driver, RuntimeName
from vmm.registry import drivers

pytestmark = pytest.mark.real

RUNNING, STOPPED, FAILED = InstanceState.RUNNING, InstanceState.STOPPED, InstanceState.FAILED
TICK = re.compile(r"tick nonce=([0-9a-f]{16}) count=([0-9a-f]{8}) shm=([0-9a-f]{16}|-)")
PROGRAMS: dict[RuntimeName, str] = {"qemu": "qemu-system-x86_64", "cloud-hypervisor": "cloud-hypervisor"}


@pytest.fixture(params=["qemu", "cloud-hypervisor"])
async def runtime(request: pytest.FixtureRequest, site: Site) -> RuntimeName:
    name: RuntimeName = request.param
    if shutil.which(PROGRAMS[name]) is None:
        pytest.skip(f"{name} is not installed")
    driver: Driver = drivers({"qemu": None, "cloud-hypervisor": None})[name]
    if not (await driver.probe()).runnable:
        pytest.skip(f"{name} does not run here")
    site.drivers = {name: driver}
    return name


async def ticks(instance: Instance, count: int, *, since: int = 0) -> list[tuple[str, int, str]]:
    """The nonce, count and shared memory of the next ticks after a count."""
    found: list[tuple[str, int, str]] = []
    async with asyncio.timeout(20):
        async for line in instance.console.read(follow=True):
            if isinstance(line, LogLine) and (match := TICK.fullmatch(line.line)) and int(match[2], 16) > since:
                found.append((match[1], int(match[2], 16), match[3]))
                if len(found) == count:
                    break
    return found


async def latest(instance: Instance) -> int:
    lines = [TICK.fullmatch(line) for line in await instance.console.last_lines(3)]
    return max(int(match[2], 16) for match in lines if match)


async def start_real(supervisor: Supervisor, runtime: RuntimeName, manifest: str, **overrides: str) -> Instance:
    instance = await start(supervisor, manifest, wait=RUNNING, runtime=runtime, **overrides)
    assert instance.state is RUNNING, instance.record.exit
    return instance


async def test_snapshot_and_clones(site: Site, runtime: RuntimeName) -> None:
    async with site.daemon() as supervisor:
        base = await start_real(supervisor, runtime, "guest:shm", name="base")
        ((nonce, *_),) = await ticks(base, 1)
        await supervisor.inject(base, [MmioWrite(device="mmio0", data=bytes(range(8)))])
        before = await latest(base)
        reply = await supervisor.snapshot(base, "warm")
        after = (await ticks(base, 1, since=await latest(base)))[0][1]
        clones = [await start_real(supervisor, runtime, "guest:warm") for _ in range(4)]
        for clone in clones:
            seen = await ticks(clone, 2)
            assert [each[0] for each in seen] == [nonce, nonce]
            assert before < seen[0][1] <= after + 1
            assert seen[1][1] == seen[0][1] + 1
            assert seen[0][2] == bytes(range(8)).hex()
            info = await clone.info()
            assert info.boot == "restore"
            assert info.metrics.memory is not None
            assert info.metrics.memory.private_bytes > 0
        # The original goes on, its nonce and its console with it; and so does a snapshot of a clone.
        later = await ticks(base, 2, since=after + 1)
        assert [each[0] for each in later] == [nonce, nonce]
        await supervisor.snapshot(clones[0], "clone")
        grandchild = await start_real(supervisor, runtime, "guest:clone")
        assert (await ticks(grandchild, 1))[0][0] == nonce
        assert reply.pause_ms < 5000
        await release_all(site, supervisor)


async def test_disks_of_snapshots(site: Site, runtime: RuntimeName) -> None:
    async with site.daemon() as supervisor:
        base = await start_real(supervisor, runtime, "guest:disk")
        await ticks(base, 1)
        await supervisor.snapshot(base, "one")
        clone = await start_real(supervisor, runtime, "guest:one")
        await ticks(clone, 1)
        await supervisor.snapshot(clone, "two")
        await supervisor.snapshot(base, "three")
        for manifest in ("guest:two", "guest:three"):
            await ticks(await start_real(supervisor, runtime, manifest), 1)
        await release_all(site, supervisor)


@pytest.mark.parametrize("resident", [True, False])
async def test_layers_of_clones_of_clones(
    site: Site, runtime: RuntimeName, monkeypatch: pytest.MonkeyPatch, *, resident: bool
) -> None:
    """Three snapshots, each of a clone of the one before: the counter goes on, also from the blobs alone."""
    monkeypatch.setattr("ovms_supervisor.instance.layering._MOST_OF_IT", 100)  # the guest has hardly more RAM in use
    async with site.daemon() as supervisor:
        store, images = supervisor._host.store, supervisor._host.images
        machine, count, nonces = await start_real(supervisor, runtime, "guest:plain"), 0, set()
        for number in range(4):
            nonce, count, _ = (await ticks(machine, 2, since=count))[-1]
            nonces.add(nonce)
            await supervisor.snapshot(machine, f"layer-{number}")
            digest = await asyncio.to_thread(store.resolve, parse_reference(f"guest:layer-{number}"))
            artifact = await asyncio.to_thread(store.artifact, digest)
            assert len(artifact.ramsnap_parents) == number
            await supervisor.remove(machine, force=True)
            if not resident:
                await evict_all(images)
            machine = await start_real(supervisor, runtime, f"guest:layer-{number}")
        assert (await ticks(machine, 1))[0][1] > count
        assert len(nonces) == 1
        await release_all(site, supervisor)


async def evict_all(images: ResidentImages) -> None:
    for load in list(images._shelf._loads.values()):
        await load.ended()
    for digest in list(images._shelf.entries):
        await images.evict(digest)


async def test_pause_stops_the_guest(site: Site, runtime: RuntimeName) -> None:
    async with site.daemon() as supervisor:
        instance = await start_real(supervisor, runtime, "guest:plain")
        await ticks(instance, 1)
        await supervisor.pause(instance)
        count = await latest(instance)
        await asyncio.sleep(0.3)
        assert await latest(instance) == count
        await supervisor.resume(instance)
        await ticks(instance, 1, since=count)
        await release_all(site, supervisor)


@pytest.mark.parametrize(
    ("mode", "state", "words"),
    [("off", STOPPED, "powered itself off"), ("panic", FAILED, "panicked"), ("triple", FAILED, "reset itself")],
)
async def test_guests_that_end_by_themselves(
    site: Site, runtime: RuntimeName, mode: str, state: InstanceState, words: str
) -> None:
    async with site.daemon() as supervisor:
        instance = await start_real(supervisor, runtime, "guest:plain", kernel_args=f"mode={mode}")
        assert await ended(instance) is state, instance.record.exit
        assert instance.record.exit is not None
        assert words in instance.record.exit.reason
        assert await site.leaks(supervisor.instances()) == []


async def test_a_disk_of_many_layers(site: Site, runtime: RuntimeName) -> None:
    """More than Cloud Hypervisor opens: a lineage of snapshots comes to that."""
    disks = await asyncio.to_thread(many_layers, site.directory)
    store = Store(site.directory / "root")
    await asyncio.to_thread(partial(site.pack, store, "guest:deep", disks=disks))
    await asyncio.to_thread(store.close)
    async with site.daemon() as supervisor:
        instance = await start_real(supervisor, runtime, "guest:deep")
        await ticks(instance, 1)
        await supervisor.snapshot(instance, "deeper")
        clone = await start_real(supervisor, runtime, "guest:deeper")
        await ticks(clone, 1)
        await release_all(site, supervisor)


def many_layers(directory: Path) -> tuple[Path, ...]:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    disks = [directory / "layer-0.qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disks[0], "1M"], check=True, timeout=30)
    for number in range(1, 14):
        disks.append(directory / f"layer-{number}.qcow2")
        command: list[str | Path] = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            disks[-2],
            "-F",
            "qcow2",
            disks[-1],
        ]
        subprocess.run(command, check=True, timeout=30)
    return tuple(disks)


async def test_a_vmm_that_is_killed(site: Site, runtime: RuntimeName) -> None:
    async with site.daemon() as supervisor:
        instance = await start_real(supervisor, runtime, "guest:disk")
        await ticks(instance, 1)
        assert instance.vm is not None
        os.kill(instance.vm.pid, signal.SIGKILL)
        assert await ended(instance) is FAILED
        exit_info = instance.record.exit
        assert exit_info is not None
        assert exit_info.signal == signal.SIGKILL
        assert any(TICK.fullmatch(line) for line in exit_info.last_console)
        assert await site.leaks(supervisor.instances()) == []


async def test_taken_over_by_the_next_daemon(site: Site, runtime: RuntimeName) -> None:
    async with site.daemon(on_exit="leave") as supervisor:
        base = await start_real(supervisor, runtime, "guest:shm", name="base")
        ((nonce, *_),) = await ticks(base, 1)
        await supervisor.snapshot(base, "warm")
        clone = await start_real(supervisor, runtime, "guest:warm", name="clone")
        count = (await ticks(clone, 1))[0][1]
    await asyncio.sleep(0.2)
    async with site.daemon() as supervisor:
        for name in ("base", "clone"):
            again = supervisor.find(name)
            assert again.state is RUNNING, again.record.exit
            assert (await ticks(again, 1, since=count + 1))[0][0] == nonce
            await supervisor.pause(again)
            await supervisor.resume(again)
            await supervisor.snapshot(again, f"after-{name}")
            await ticks(again, 1, since=await latest(again))
        await supervisor.stop(supervisor.find("base"), 0)
        assert await ended(supervisor.find("base")) is STOPPED
        await release_all(site, supervisor)


async def test_many_at_once(site: Site, runtime: RuntimeName) -> None:
    async with site.daemon() as supervisor:
        base = await start_real(supervisor, runtime, "guest:plain")
        await ticks(base, 1)
        await supervisor.snapshot(base, "warm")
        await supervisor.remove(base, force=True)
        clones = await asyncio.gather(*(start_real(supervisor, runtime, "guest:warm") for _ in range(8)))
        nonces = {(await ticks(clone, 1))[0][0] for clone in clones}
        assert len(nonces) == 1
        await release_all(site, supervisor)


async def test_parked_clones(site: Site, runtime: RuntimeName) -> None:
    """They stand still, outlive the daemon, and go on from the moment of the snapshot when they are claimed."""
    order = WarmRequest(manifest="guest:warm", count=2, runtime=runtime)
    async with site.daemon(on_exit="leave") as supervisor:
        base = await start_real(supervisor, runtime, "guest:shm", name="base")
        ((nonce, *_),) = await ticks(base, 1)
        await supervisor.snapshot(base, "warm")
        moment = await latest(base)
        await supervisor.remove(base, force=True)
        await supervisor.order_parked(order)
        async with asyncio.timeout(30):
            assert (await supervisor.pool.settled("guest:warm")).trouble is None
        before = {each.id for each in supervisor.instances()}
        assert len(before) == 2
        assert [await each.console.last_lines(1) for each in supervisor.instances()] == [[], []]
    async with site.daemon() as supervisor:
        assert {each.id for each in supervisor.instances()} == before
        assert [await each.console.last_lines(1) for each in supervisor.instances()] == [[], []]
        claimed = [await start_real(supervisor, runtime, "guest:warm", name=f"clone-{i}") for i in range(2)]
        assert {each.id for each in claimed} == before
        for clone in claimed:
            assert clone.record.start is not None
            assert clone.record.start.path == "claimed"
            seen = await ticks(clone, 2)
            assert [each[0] for each in seen] == [nonce, nonce]
            assert 0 < seen[0][1] <= moment + 1
            await supervisor.pause(clone)
            await supervisor.resume(clone)
        await supervisor.dissolve_parked("guest:warm")
        await supervisor.snapshot(claimed[0], "again")
        async with asyncio.timeout(30):
            while len(supervisor.instances()) > 2:  # noqa: ASYNC110 - what was being parked
                await asyncio.sleep(0.01)
        await release_all(site, supervisor)
