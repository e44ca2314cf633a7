"""What the next daemon makes of what an earlier one left: machines that run, and everything half done."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from ovms_supervisor.directory_lock import locked
from ovms_supervisor.instance import Instance, journal
from ovms_supervisor.instance.adoption import Progress
from ovms_supervisor.instance.record import Doing, Record, decode, encode
from ovms_supervisor.layout import Layout
from ovms_supervisor.supervisor import Supervisor
from spec.api import MmioWrite
from spec.errors import CorruptStore, DaemonRunning, NameInUse
from spec.instance import InstanceState
from tests.supervisor.conftest import Site, ended, start
from tests.supervisor.test_snapshots import release_all

RUNNING, PAUSED = InstanceState.RUNNING, InstanceState.PAUSED
STOPPED, FAILED = InstanceState.STOPPED, InstanceState.FAILED


def edit(site: Site, instance: Instance, **changes: object) -> None:
    """Make a journal say what it says when a daemon dies at another moment."""
    path = instance.paths.journal
    path.write_bytes(encode(msgspec.structs.replace(journal.read(path), **changes)))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def only(supervisor: Supervisor) -> Instance:
    (instance,) = supervisor.instances()
    return instance


def reason(instance: Instance) -> str:
    assert instance.record.exit is not None
    return instance.record.exit.reason


@asynccontextmanager
async def leaving(site: Site) -> AsyncIterator[Supervisor]:
    async with site.daemon(on_exit="leave") as supervisor:
        yield supervisor


async def test_running_machines_are_taken_over(site: Site) -> None:
    async with leaving(site) as supervisor:
        cold = await start(supervisor, "guest:disk", name="cold")
        await supervisor.snapshot(cold, "warm")
        clone = await start(supervisor, "guest:warm", name="clone")
        paused = await start(supervisor, "guest:shm", name="paused")
        await supervisor.inject(paused, [MmioWrite(device="mmio0", data=b"kept")])
        await supervisor.pause(paused)
        gone = await start(supervisor, name="gone")
        await supervisor.stop(gone, 0)
        await ended(gone)
        pids = {each.name: each.vm.pid for each in (cold, clone, paused) if each.vm}
        infos = {each.name: await each.info() for each in supervisor.instances()}
    assert await asyncio.to_thread(site.processes) == {pids[each.name or ""]: each.id for each in (cold, clone, paused)}
    async with leaving(site) as supervisor:
        again = {each.name: each for each in supervisor.instances()}
        assert list(again) == ["cold", "clone", "paused", "gone"]
        assert [each.state for each in again.values()] == [RUNNING, RUNNING, PAUSED, STOPPED]
        assert {name: await each.info() for name, each in again.items()} == infos
        assert await site.leaks(supervisor.instances()) == []
        with pytest.raises(NameInUse):
            await start(supervisor, name="cold")
        read = MmioWrite(device="mmio0", read=4)
        assert await supervisor.inject(again["paused"], [read]) == [b"kept"]
        await supervisor.resume(again["paused"])
        await supervisor.snapshot(again["cold"], "again")
        await supervisor.snapshot(again["clone"], "again2")
        site.vm(again["clone"]).crash()
        assert await ended(again["clone"]) is FAILED
        await supervisor.stop(again["cold"], None)
        assert await ended(again["cold"]) is STOPPED
        await release_all(site, supervisor)


async def test_progress_is_told_and_one_that_hangs_keeps_nobody_waiting(site: Site) -> None:
    async with leaving(site) as supervisor:
        for _ in range(4):
            await start(supervisor)
    told: list[tuple[int, int]] = []
    most_told = asyncio.Event()

    def progress(done: int, of: int) -> None:
        told.append((done, of))
        if done == 3:
            most_told.set()

    site.fake.faults["attach"] = "hang"
    opening = asyncio.create_task(_opened(site, progress))
    async with asyncio.timeout(20):
        await most_told.wait()
    site.fake.released.set()
    await opening
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


async def _opened(site: Site, progress: Progress) -> None:
    async with site.daemon(on_exit="stop", progress=progress) as supervisor:
        assert [each.state for each in supervisor.instances()] == [RUNNING] * 4


async def test_stop_all_at_the_end(site: Site) -> None:
    async with site.daemon(on_exit="stop") as supervisor:
        for _ in range(3):
            await start(supervisor)
    async with site.daemon() as supervisor:
        assert [each.state for each in supervisor.instances()] == [STOPPED] * 3
        assert {reason(each) for each in supervisor.instances()} == {"stopped with the daemon"}
        assert await site.leaks(supervisor.instances()) == []


async def test_a_machine_that_ended_meanwhile(site: Site) -> None:
    async with leaving(site) as supervisor:
        instance = await start(supervisor, "guest:disk")
        vm = site.vm(instance)
    await asyncio.to_thread(kill, vm.pid)
    async with leaving(site) as supervisor:
        assert await ended(only(supervisor)) is FAILED
        assert "no daemon was watching" in reason(only(supervisor))
        assert await site.leaks(supervisor.instances()) == []


async def test_a_pid_that_is_another_process(site: Site) -> None:
    async with leaving(site) as supervisor:
        instance = await start(supervisor)
        vm = site.vm(instance)
        record = instance.record.vm
    await asyncio.to_thread(kill, vm.pid)
    assert record is not None
    await asyncio.to_thread(edit, site, instance, vm=msgspec.structs.replace(record, pid=os.getpid()))
    async with leaving(site) as supervisor:
        assert await ended(only(supervisor)) is FAILED


async def test_a_vmm_that_does_not_answer_any_more(site: Site) -> None:
    async with leaving(site) as supervisor:
        await start(supervisor, "guest:disk")
    site.fake.faults["attach"] = "refuse"
    async with leaving(site) as supervisor:
        assert await ended(only(supervisor)) is FAILED
        assert "attach: the fake refuses" in reason(only(supervisor))
        assert await site.leaks(supervisor.instances()) == []


async def test_an_image_that_is_no_longer_trusted_is_no_reason_to_end_a_machine(site: Site) -> None:
    async with leaving(site) as supervisor:
        await supervisor.snapshot(await start(supervisor), "warm")
        clone = await start(supervisor, "guest:warm", name="clone")
        assert clone.image is not None
        ram = clone.image.ram
    os.utime(ram, (1, 1))
    async with leaving(site) as supervisor:
        again = supervisor.find("clone")
        assert again.state is RUNNING
        assert [each.code for each in again.record.degraded] == ["image.not_held"]
        await release_all(site, supervisor)


async def test_a_host_that_was_rebooted(site: Site) -> None:
    async with leaving(site) as supervisor:
        instance = await start(supervisor, "guest:disk")
    await asyncio.to_thread(edit, site, instance, boot_id="of before")
    async with leaving(site) as supervisor:
        assert await ended(only(supervisor)) is FAILED
        assert reason(only(supervisor)) == "the host was rebooted"


async def test_a_start_that_was_interrupted(site: Site) -> None:
    """The daemon dies between the spawn and the next record: the process is found all the same."""
    async with leaving(site) as supervisor:
        instance = await start(supervisor, "guest:disk")
        vm = site.vm(instance)
    await asyncio.to_thread(edit, site, instance, state=InstanceState.STARTING, vm=None)
    async with leaving(site) as supervisor:
        assert await ended(only(supervisor)) is FAILED
        assert reason(only(supervisor)) == "the daemon ended while it was starting"
        assert await asyncio.to_thread(site.processes) == {}
        assert await site.leaks(supervisor.instances()) == []
    assert vm.pid not in await asyncio.to_thread(site.processes)


async def test_a_stop_that_was_interrupted(site: Site) -> None:
    async with leaving(site) as supervisor:
        instance = await start(supervisor, "guest:disk")
    await asyncio.to_thread(edit, site, instance, state=InstanceState.STOPPING)
    async with leaving(site) as supervisor:
        assert await ended(only(supervisor)) is STOPPED
        assert await site.leaks(supervisor.instances()) == []


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("what", ["pause", "resume"])
async def test_a_pause_or_resume_that_was_interrupted(site: Site, what: str, done: bool) -> None:
    async with leaving(site) as supervisor:
        instance = await start(supervisor)
        if what == "resume":
            await supervisor.pause(instance)
        guest = site.vm(instance).guest
    guest.going = (what == "resume") == done
    await asyncio.to_thread(edit, site, instance, doing=Doing(what=what))  # type: ignore[arg-type]
    async with leaving(site) as supervisor:
        assert only(supervisor).state is (PAUSED if what == "pause" else RUNNING)
        assert guest.going is (what == "resume")
        await release_all(site, supervisor)


@pytest.mark.parametrize("step", ["spawn", "pause", "save", "restore"])
async def test_a_snapshot_that_was_interrupted(site: Site, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon is killed in the middle: the successor goes, the machine goes on."""
    monkeypatch.setattr("ovms_supervisor.draining.DRAIN_S", 0.01)
    async with leaving(site) as supervisor:
        instance = await start(supervisor, "guest:disk", name="web", disk="persistent")
        before = site.vm(instance)
        site.fake.faults[step] = "hang"
        task = asyncio.create_task(supervisor.snapshot(instance, "one"))
        await site.fake.hanging.wait()
        left = await asyncio.to_thread(instance.paths.journal.read_bytes)
        successor = site.fake.spawned[-1] if step == "restore" else None
        files = [*instance.paths.memory.iterdir(), *site.directory.glob("root/disks/web/*")]
        copies = await asyncio.to_thread(lambda: {path: path.read_bytes() for path in files})
        if successor is not None:  # as if nobody had cleaned up: the process stays
            successor.process.release()
            site.fake.spawned.remove(successor)
            successor.stop = _never  # type: ignore[method-assign,assignment]
        site.fake.faults["resume"] = "refuse"  # nor let the machine go on
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(_put_back, instance.paths.journal, left, copies)
    async with leaving(site) as supervisor:
        again = only(supervisor)
        assert (again.state, site.vm(again).pid) == (RUNNING, before.pid)
        assert before.guest.going
        assert await asyncio.to_thread(site.processes) == {before.pid: again.id}
        assert await site.leaks(supervisor.instances()) == []
        assert [path.name for path in again.paths.memory.iterdir()] == ["ram"]
        await supervisor.snapshot(again, "two")
        await release_all(site, supervisor)


async def _never(**_: object) -> None:
    return None


def _put_back(path: Path, data: bytes, files: dict[Path, bytes]) -> None:
    path.write_bytes(data)
    for each, content in files.items():
        if not each.exists():
            each.write_bytes(content)


async def test_a_snapshot_in_place_that_was_interrupted_after_the_switch(site: Site) -> None:
    async with leaving(site) as supervisor:
        first = await start(supervisor, "guest:disk")
        await supervisor.snapshot(first, "one")
        await supervisor.remove(first, force=True)
        clone = await start(supervisor, "guest:one")
        record = clone.record
        assert record.vm is not None
        (disk,) = record.vm.machine.disks
        overlay = disk.path.with_name("disk-0.1.qcow2")
    await asyncio.to_thread(overlay.write_bytes, b"as if it were one")
    await asyncio.to_thread(edit, site, clone, doing=Doing(what="snapshot", overlay=overlay), generation=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ovms_supervisor.instance.half_done.has_open", lambda pid, path: path == overlay)
        async with leaving(site) as supervisor:
            again = supervisor.find(clone.id)
            assert again.record.pending_layers == [disk.path]
            assert [each.path for each in site.vm(again).machine.disks] == [overlay]
            await release_all(site, supervisor)


async def test_journals_that_make_no_sense_are_left_alone(site: Site) -> None:
    async with leaving(site) as supervisor:
        instance = await start(supervisor)
        vm = site.vm(instance)
    await asyncio.to_thread(instance.paths.journal.write_bytes, b'{"version": 2}')
    nothing = instance.paths.directory.parent / "00000000-0000-0000-0000-000000000000"
    nothing.mkdir()
    async with leaving(site) as supervisor:
        assert supervisor.instances() == []
        assert any("version 2" in trouble for trouble in await supervisor.readiness())
        assert await asyncio.to_thread(site.processes) == {vm.pid: instance.id}
        assert (instance.paths.memory / "ram").exists()
        assert not nothing.exists()
    await asyncio.to_thread(kill, vm.pid)


async def test_what_belongs_to_nobody_is_removed(site: Site) -> None:
    for path in ("images/instances/x/ram", "root/instances/y/disk-0.qcow2", "root/storing/z/layer-0.qcow2"):
        (site.directory / path).parent.mkdir(parents=True)
        (site.directory / path).touch()
    async with site.daemon():
        assert await site.leaks([]) == []


def test_one_daemon_at_a_time(site: Site) -> None:
    locks = Layout.of(site.settings()).locks
    with locked(locks):
        with pytest.raises(DaemonRunning, match=str(os.getpid())), locked(locks):
            pass
        with pytest.raises(DaemonRunning), locked(locks[1:]):
            pass
    with locked(locks):
        pass


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 1, "vm": 3}', b"\xff"])
def test_journals_that_are_none(data: bytes) -> None:
    with pytest.raises(CorruptStore):
        decode(data)


async def test_journals_survive_the_round_trip(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:shm", name="web", memory="32M")
        record = instance.record
        assert decode(encode(record)) == record
        assert isinstance(await asyncio.to_thread(journal.read, instance.paths.journal), Record)


async def test_a_stray_that_has_got_the_pid_of_a_machine(site: Site) -> None:
    """What a journal knows is a process that was started at a certain time, not a number."""
    async with leaving(site) as supervisor:
        instance = await start(supervisor)
        vm = site.vm(instance)
        record = instance.record.vm
    assert record is not None
    other = msgspec.structs.replace(record, start_ticks=record.start_ticks - 1)
    await asyncio.to_thread(edit, site, instance, vm=other)
    async with leaving(site) as supervisor:
        assert await ended(only(supervisor)) is FAILED
        assert await asyncio.to_thread(site.processes) == {}
    assert vm.pid not in await asyncio.to_thread(site.processes)
