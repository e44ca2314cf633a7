"""What one start does, in counts: times can't be asserted, and these are what the times are made of."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from anyio._backends import _asyncio as backend
from anyio.to_thread import run_sync

from ovms_supervisor.instance import journal
from ovms_supervisor.instance.record import Record
from ovms_supervisor.logs import threads
from ovms_supervisor.supervisor import Supervisor
from spec.api import MmioWrite, StartRequest
from spec.errors import OutOfRange, WrongState
from spec.instance import InstanceState
from tests.supervisor.conftest import Site, start

OURS = ("cache", "vmm", "ovms_supervisor")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Visits of threads, and journals written, from now on."""
    found: Counter[str] = Counter()
    in_thread, submit = backend.AsyncIOBackend.run_sync_in_worker_thread, threads._pool.submit
    write = journal.Journal.write

    async def hop(function: Any, *arguments: Any, **keywords: Any) -> Any:
        inner = getattr(function, "func", function)
        if inner.__module__.partition(".")[0] in OURS:  # the fake VMM has some of its own
            found["hops"] += 1
        return await in_thread(function, *arguments, **keywords)

    def submitted(function: Any, *arguments: Any, **keywords: Any) -> Any:
        found[function.__name__] += 1
        return submit(function, *arguments, **keywords)

    async def written(self: journal.Journal, record: Record) -> None:
        found["journals"] += 1
        await write(self, record)

    monkeypatch.setattr(backend.AsyncIOBackend, "run_sync_in_worker_thread", hop)
    monkeypatch.setattr(threads._pool, "submit", submitted)
    monkeypatch.setattr(journal.Journal, "write", written)
    return found


async def start_of_a_clone(supervisor: Supervisor, site: Site, counted: Counter[str], manifest: str) -> list[str]:
    """Start a resident artifact once to have it known, then once counted; the calls of the driver."""
    await start(supervisor, manifest)
    counted.clear()
    site.fake.calls.clear()
    instance = await supervisor.start(StartRequest(manifest=manifest))
    assert await instance.wait_for(InstanceState.RUNNING) is InstanceState.RUNNING
    return list(site.fake.calls)


async def test_a_start_of_a_resident_artifact(site: Site, counted: Counter[str]) -> None:
    async with site.daemon() as supervisor:
        base = await start(supervisor, "guest:plain")
        await supervisor.snapshot(base, "warm")
        calls = await start_of_a_clone(supervisor, site, counted, "guest:warm")
        assert calls == ["spawn", "restore"]
        # It exists; its process is named before a guest can run; it runs.
        assert counted["journals"] == 3
        # Resolving the artifact, and making the files: on a tmpfs a journal costs none.
        assert counted["hops"] == 2
        assert counted["open"] == 0


async def test_a_disk_and_devices_cost_no_further_hop(site: Site, counted: Counter[str]) -> None:
    async with site.daemon() as supervisor:
        hops = []
        for manifest in ("guest:plain", "guest:shm", "guest:disk"):
            await start_of_a_clone(supervisor, site, counted, manifest)
            hops.append(counted["hops"])
        assert max(hops) == min(hops)


async def test_the_journal_names_the_process_before_the_guest_can_run(site: Site) -> None:
    site.fake.faults["boot"] = "hang"
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:plain", wait=None)
        await site.fake.hanging.wait()
        record = await run_sync(journal.read, instance.paths.journal)
        assert record.state is InstanceState.STARTING
        assert record.vm is not None
        assert record.vm.pid == site.vm(instance).pid
        site.fake.released.set()
        assert await instance.wait_for(InstanceState.RUNNING) is InstanceState.RUNNING


async def test_status_looks_into_no_thread(site: Site, counted: Counter[str]) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:plain")
        counted.clear()
        info = await instance.info()
        assert info.metrics.memory is not None
        assert info.metrics.memory.private_bytes > 0
        assert not counted


async def test_a_small_inject_waits_for_no_thread_unless_it_is_not_its_turn(site: Site, counted: Counter[str]) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:shm")
        counted.clear()
        writes = [MmioWrite(device="mmio0", data=b"at once"), MmioWrite(device="mmio0", read=7)]
        assert supervisor.inject_at_once(instance, writes) == [b"at once"]
        assert not counted
        with pytest.raises(OutOfRange):
            supervisor.inject_at_once(instance, [MmioWrite(device="mmio0", offset=1 << 20, read=1)])
        site.fake.faults["pause"] = "hang"
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.pause(instance))
            await site.fake.hanging.wait()
            assert supervisor.inject_at_once(instance, writes) is None
            site.fake.released.set()
        await supervisor.stop(instance, 0)
        with pytest.raises(WrongState):
            supervisor.inject_at_once(instance, writes)
