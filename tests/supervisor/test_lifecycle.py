"""The life of one instance: every way through the states, and what is left afterwards."""

from __future__ import annotations

import asyncio
import signal
import stat

import pytest

from ovms_supervisor.instance import Instance
from spec.api import MmioWrite, Overrides, StartRequest
from spec.errors import (
    ArtifactNotFound,
    DeviceNotFound,
    HostLimit,
    ImmutableOverride,
    InstanceNotFound,
    InternalError,
    InvalidRequest,
    NameInUse,
    NoSpace,
    OutOfRange,
    OvmsError,
    VmmRefused,
    WrongState,
)
from spec.instance import InstanceState
from tests.supervisor.conftest import Site, ended, start

RUNNING, PAUSED = InstanceState.RUNNING, InstanceState.PAUSED
STOPPED, FAILED = InstanceState.STOPPED, InstanceState.FAILED


async def test_start_and_stop(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, name="web")
        info = await instance.info()
        assert (info.status, info.name, info.boot, info.memory_bytes) == (RUNNING, "web", "cold", 32 << 20)
        assert info.pid in await asyncio.to_thread(site.processes)
        assert info.metrics.start is not None
        assert list(info.metrics.start.phases) == [
            "resolve",
            "admit",
            "materialise",
            "launch",
            "launch.spawn",
            "launch.boot",
        ]
        assert info.metrics.start.total_ms >= info.metrics.start.phases["launch"] > 0
        assert info.metrics.memory is not None
        assert supervisor.find(instance.id[:4]) is supervisor.find("web") is instance
        assert stat.S_IMODE(instance.paths.directory.stat().st_mode) == 0o700
        await supervisor.stop(instance, None)
        assert await ended(instance) is STOPPED
        info = await instance.info()
        assert info.exit is not None
        assert (info.exit.reason, info.pid) == ("stopped on request", None)
        assert info.exit.last_console == [f"boot nonce={site.fake.guests[site.fake.spawned[0].pid].nonce}"]
        assert await site.leaks(supervisor.instances()) == []
        await supervisor.remove(instance, force=False)
        assert supervisor.instances() == []
        assert await site.leaks([]) == []
        with pytest.raises(InstanceNotFound):
            supervisor.find("web")


async def test_guest_powers_itself_off(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        site.vm(instance).power_off()
        assert await ended(instance) is STOPPED
        assert instance.record.exit is not None
        assert instance.record.exit.reason == "the guest powered itself off"


@pytest.mark.parametrize(
    ("signum", "words"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "outside"), (signal.SIGBUS, "tmpfs")]
)
async def test_vmm_crashes(site: Site, signum: int, words: str) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        site.vm(instance).say("last words")
        site.vm(instance).crash(signum)
        assert await ended(instance) is FAILED
        exit_info = instance.record.exit
        assert exit_info is not None
        assert exit_info.signal == signum
        assert words in exit_info.reason
        assert exit_info.last_console[-1] == "last words"
        assert await site.leaks(supervisor.instances()) == []


async def test_guest_panics(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        site.vm(instance).panic()
        assert await ended(instance) is FAILED
        assert instance.record.exit is not None
        assert instance.record.exit.reason == "the guest's kernel panicked"


@pytest.mark.parametrize(("step", "how"), [("spawn", "refuse"), ("boot", "refuse"), ("boot", "die")])
async def test_start_that_fails_is_undone(site: Site, step: str, how: str) -> None:
    async with site.daemon() as supervisor:
        site.fake.faults[step] = how
        instance = await start(supervisor, "guest:disk", name="web")
        assert instance.state is FAILED
        assert instance.error is not None
        assert instance.record.exit is not None
        assert instance.record.exit.reason.endswith(instance.error.detail)
        assert await site.leaks(supervisor.instances()) == []
        assert supervisor._host.capacity.promised_bytes == 0


async def test_what_is_wrong_beforehand_makes_no_instance(site: Site) -> None:
    async with site.daemon() as supervisor:
        for error, overrides in (
            (InvalidRequest, Overrides(disk="persistent")),
            (InvalidRequest, Overrides(disk="persistent", name="x")),
            (InvalidRequest, Overrides(memory=1000)),
        ):
            with pytest.raises(error):
                await supervisor.start(StartRequest(manifest="guest:plain", overrides=overrides))
        with pytest.raises(ArtifactNotFound):
            await supervisor.start(StartRequest(manifest="nobody:1", overrides=Overrides(name="x")))
        assert supervisor.instances() == []
        assert await site.leaks([]) == []
        await start(supervisor, name="x")  # the name was given back


async def test_a_name_is_given_once_also_at_the_same_time(site: Site) -> None:
    async with site.daemon() as supervisor:
        request = StartRequest(manifest="guest:plain", overrides=Overrides(name="web"))
        results = await asyncio.gather(*(supervisor.start(request) for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in results if not isinstance(each, Instance)] == [NameInUse] * 4
        (instance,) = supervisor.instances()
        await supervisor.stop(instance, 0)
        await ended(instance)
        with pytest.raises(NameInUse):
            await supervisor.start(request)
        await supervisor.remove(instance, force=False)
        await start(supervisor, name="web")


async def test_stop_during_start(site: Site) -> None:
    async with site.daemon() as supervisor:
        for step in ("spawn", "boot"):
            site.fake.hanging.clear()
            site.fake.faults[step] = "hang"
            instance = await start(supervisor, "guest:disk", wait=None)
            await site.fake.hanging.wait()
            await supervisor.stop(instance, None)
            assert instance.state is InstanceState.STOPPING
            assert await ended(instance) is STOPPED
            assert instance.record.exit is not None
            assert await site.leaks(supervisor.instances()) == []


async def test_stop_twice(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        site.fake.faults["stop"] = "hang"
        await supervisor.stop(instance, 60)
        await site.fake.hanging.wait()
        await supervisor.stop(instance, 60)  # accepted, changes nothing
        assert instance.state is InstanceState.STOPPING
        await supervisor.stop(instance, 0)  # sooner
        assert await ended(instance) is STOPPED
        with pytest.raises(WrongState, match="stopped"):
            await supervisor.stop(instance, 0)


async def test_pause_and_resume(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        await supervisor.pause(instance)
        assert (instance.state, site.vm(instance).guest.going) == (PAUSED, False)
        with pytest.raises(WrongState):
            await supervisor.pause(instance)
        await supervisor.resume(instance)
        assert (instance.state, site.vm(instance).guest.going) == (RUNNING, True)
        with pytest.raises(WrongState):
            await supervisor.resume(instance)
        site.fake.faults["pause"] = "refuse"
        with pytest.raises(VmmRefused):
            await supervisor.pause(instance)
        assert (instance.state, site.vm(instance).guest.going) == (RUNNING, True)
        await supervisor.pause(instance)
        await supervisor.stop(instance, 3600)  # no grace for a guest that stands still
        assert await ended(instance) is STOPPED


async def test_remove_needs_an_end_or_force(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        with pytest.raises(WrongState):
            await supervisor.remove(instance, force=False)
        await asyncio.gather(
            supervisor.remove(instance, force=True), supervisor.remove(instance, force=True), return_exceptions=True
        )
        assert supervisor.instances() == []
        assert await site.leaks([]) == []


async def test_inject(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:shm")
        size = 64 * 1024
        write = MmioWrite(device="mmio0", offset=size - 4, data=b"abcd")
        read = MmioWrite(device="mmio0", offset=size - 5, read=5)
        assert await supervisor.inject(instance, [write, read]) == [b"\0abcd"]
        assert await supervisor.inject(instance, [MmioWrite(device="mmio0", text="grüß"), read]) == [b"\0abcd"]
        for error, bad in (
            (OutOfRange, MmioWrite(device="mmio0", offset=size - 3, data=b"abcd")),
            (OutOfRange, MmioWrite(device="mmio0", offset=size, read=1)),
            (DeviceNotFound, MmioWrite(device="other", data=b"x")),
            (InvalidRequest, MmioWrite(device="mmio0")),
            (InvalidRequest, MmioWrite(device="mmio0", data=b"x", read=1)),
        ):
            with pytest.raises(error):
                await supervisor.inject(instance, [MmioWrite(device="mmio0", offset=100, data=b"no"), bad])
        untouched = MmioWrite(device="mmio0", offset=100, read=2)
        assert await supervisor.inject(instance, [untouched]) == [b"\0\0"]


async def test_a_caller_that_goes_away_changes_nothing(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        site.fake.faults["pause"] = "hang"
        caller = asyncio.create_task(supervisor.pause(instance))
        await site.fake.hanging.wait()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        site.fake.released.set()
        assert await instance.wait_for(PAUSED) is PAUSED
        assert not site.vm(instance).guest.going


async def test_a_start_whose_caller_goes_away(site: Site) -> None:
    """Whenever that is: the instance goes on by itself."""
    async with site.daemon() as supervisor:
        request = StartRequest(manifest="guest:disk", overrides=Overrides(name="web"))
        for turns in range(1, 60, 4):
            created = supervisor.events.subscribe()
            caller = asyncio.create_task(supervisor.start(request))
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
            instance = supervisor.find((await anext(created)).instance_id or "")
            assert await instance.wait_for(RUNNING) is RUNNING, instance.record.exit
            await supervisor.remove(instance, force=True)
            created.close()
            assert await site.leaks([]) == []
            assert supervisor._host.capacity.promised_bytes == 0


async def test_immutable_on_restore(site: Site) -> None:
    async with site.daemon() as supervisor:
        base = await start(supervisor, name="base")
        await supervisor.snapshot(base, "warm")
        for overrides in (Overrides(memory="64M"), Overrides(cpus=2), Overrides(kernel_args="quiet")):
            with pytest.raises(ImmutableOverride):
                await supervisor.start(StartRequest(manifest="guest:warm", overrides=overrides))
        same = Overrides(memory=32 << 20, cpus=1)
        clone = await supervisor.start(StartRequest(manifest="guest:warm", overrides=same))
        assert await clone.wait_for(RUNNING) is RUNNING


async def test_operations_on_the_dead(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:shm")
        await supervisor.stop(instance, 0)
        await ended(instance)
        for operation in (
            supervisor.pause(instance),
            supervisor.resume(instance),
            supervisor.snapshot(instance, "x"),
            supervisor.inject(instance, [MmioWrite(device="mmio0", read=1)]),
            supervisor.stop(instance, None),
        ):
            with pytest.raises(WrongState):
                await operation


@pytest.mark.parametrize(
    ("error", "told"),
    [(ZeroDivisionError("a bug"), InternalError), (OSError(5, "Input/output error", "/dev/shm/ram"), HostLimit)],
)
async def test_a_start_that_breaks_before_anything_is_there(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[OvmsError]
) -> None:
    async def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("ovms_supervisor.instance.start.materialise", broken)
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        assert instance.state is FAILED
        assert isinstance(instance.error, told)
        assert await site.leaks(supervisor.instances()) == []
        await supervisor.remove(instance, force=False)


async def test_a_driver_that_breaks_its_promises(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        site.fake.faults["stop"] = "refuse"
        await supervisor.stop(instance, 0)
        assert await ended(instance) is FAILED
        assert instance.record.exit is not None
        assert "stop: the fake refuses" in instance.record.exit.reason


async def test_a_journal_that_cannot_be_written(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is an instance it is the caller's error; later it does not stand in the way of anything."""

    def full(*_: object) -> None:
        raise NoSpace("the journal cannot be written: No space left on device")

    async with site.daemon() as supervisor:
        with monkeypatch.context() as patch:
            for name in ("_replace", "_replace_in_memory"):
                patch.setattr(f"ovms_supervisor.instance.journal.{name}", full)
            with pytest.raises(NoSpace):
                await start(supervisor)
            assert supervisor.instances() == []
            assert await site.leaks([]) == []
        instance = await start(supervisor)
        with monkeypatch.context() as patch:
            for name in ("_replace", "_replace_in_memory"):
                patch.setattr(f"ovms_supervisor.instance.journal.{name}", full)
            await supervisor.pause(instance)
            assert [each.code for each in instance.record.degraded] == ["journal.not_written"]
            await supervisor.stop(instance, 0)
            assert await ended(instance) is STOPPED
        assert await site.leaks(supervisor.instances()) == []
