"""Confined VMMs under the supervisor: real ones, from boot to the snapshot of a clone, across daemons."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ovms_supervisor.instance import Instance
from ovms_supervisor.instance.isolation import FIRST_UID
from ovms_supervisor.supervisor import Supervisor
from spec.api import MmioWrite
from spec.errors import IsolationMissing
from spec.instance import InstanceState
from tests.supervisor.conftest import Site, start
from tests.supervisor.test_real_guests import PROGRAMS, latest, start_real, ticks
from tests.supervisor.test_snapshots import release_all
from vmm.driver import RuntimeName
from vmm.registry import drivers
from vmm.sandbox.launching import Launcher
from vmm.sandbox.probing import probe

pytestmark = pytest.mark.real


@pytest.fixture(params=["qemu", "cloud-hypervisor"])
async def runtime(request: pytest.FixtureRequest, site: Site) -> RuntimeName:
    name: RuntimeName = request.param
    if shutil.which(PROGRAMS[name]) is None or not (await drivers({})[name].probe()).runnable:
        pytest.skip(f"{name} does not run here")
    launcher = Launcher(site.directory / "probe.log")
    unavailable = await probe(launcher)
    await launcher.close()
    if unavailable:
        pytest.skip(f"this machine confines no processes: {unavailable}")
    return name


@asynccontextmanager
async def daemon(site: Site, runtime: RuntimeName, **changes: str) -> AsyncIterator[Supervisor]:
    launcher = Launcher(site.directory / "launcher.log")
    site.drivers = {runtime: drivers({}, launcher)[runtime]}
    try:
        async with site.daemon(launcher=launcher, **changes) as supervisor:  # type: ignore[arg-type]
            yield supervisor
    finally:
        await launcher.close()


def missing(instance: Instance) -> set[str]:
    assert instance.record.isolation
    return {layer.name for layer in instance.record.isolation if not layer.holds}


def opens_images_for_writing(instance: Instance) -> bool:
    return instance.record.runtime.name == "qemu" and tuple(
        map(int, instance.record.runtime.version.split(".")[:2])
    ) < (8, 2)


async def test_a_confined_machine_does_all_that_a_machine_does(site: Site, runtime: RuntimeName) -> None:
    async with daemon(site, runtime) as supervisor:
        base = await start_real(supervisor, runtime, "guest:disk", name="base")
        assert missing(base) == set()
        await ticks(base, 1)
        await supervisor.snapshot(base, "one")
        clone = await start_real(supervisor, runtime, "guest:one")
        expected = {"image"} if opens_images_for_writing(clone) else set()
        assert missing(base) == missing(clone) == expected
        assert {each.code for each in clone.record.degraded} == ({"isolation.incomplete"} if expected else set())
        await ticks(clone, 1)
        await supervisor.snapshot(clone, "two")
        await ticks(clone, 1, since=await latest(clone))
        grandchild = await start_real(supervisor, runtime, "guest:two")
        await ticks(grandchild, 1)
        await supervisor.pause(grandchild)
        await supervisor.resume(grandchild)
        await release_all(site, supervisor)


async def test_the_next_daemon_has_full_control_of_confined_machines(site: Site, runtime: RuntimeName) -> None:
    async with daemon(site, runtime, on_exit="leave") as supervisor:
        base = await start_real(supervisor, runtime, "guest:shm", name="base")
        await ticks(base, 1)
    async with daemon(site, runtime) as supervisor:
        taken = supervisor.find("base")
        assert taken.state is InstanceState.RUNNING
        await supervisor.inject(taken, [MmioWrite(device="mmio0", data=b"12345678")])
        await supervisor.snapshot(taken, "later")
        clone = await start_real(supervisor, runtime, "guest:later")
        assert (await ticks(clone, 1))[0][2] == b"12345678".hex()
        assert missing(clone) <= {"image"}
        await release_all(site, supervisor)


async def test_a_vmm_has_a_user_of_its_own_and_others_have_none_of_its_files(site: Site, runtime: RuntimeName) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a VMM a uid of its own")
    async with daemon(site, runtime) as supervisor:
        machines = [await start_real(supervisor, runtime, "guest:disk") for _ in range(2)]
        uids = {_uid(each) for each in machines}
        assert len(uids) == 2
        assert min(uids) >= FIRST_UID
        for each in machines:
            for path in (each.paths.ram(0), each.paths.disks / "disk-0.qcow2"):
                status = path.stat()
                assert (status.st_uid, stat.S_IMODE(status.st_mode) & 0o077) == (_uid(each), 0)
            assert each.paths.disks.stat().st_uid == 0
        await supervisor.snapshot(machines[0], "frozen")
        clone = await start_real(supervisor, runtime, "guest:frozen")
        assert clone.image is not None
        assert clone.image.ram.stat().st_uid == 0
        assert {path.stat().st_uid for path in clone.image.state_dir.iterdir()} == {0}
        await release_all(site, supervisor)


async def test_less_than_required_does_not_run(site: Site, runtime: RuntimeName) -> None:
    async with daemon(site, runtime, isolation="required") as supervisor:
        base = await start_real(supervisor, runtime, "guest:plain")
        await ticks(base, 1)
        await supervisor.snapshot(base, "one")
        clone = await start(supervisor, "guest:one", runtime=runtime, wait=InstanceState.RUNNING)
        if opens_images_for_writing(clone):
            assert clone.state is InstanceState.FAILED
            assert isinstance(clone.error, IsolationMissing)
            assert await clone.console.last_lines(1) == []  # not one instruction of the guest
        else:
            assert clone.state is InstanceState.RUNNING
            await ticks(clone, 1)
        await release_all(site, supervisor)


async def test_off_is_off(site: Site, runtime: RuntimeName) -> None:
    async with daemon(site, runtime, isolation="off") as supervisor:
        base = await start_real(supervisor, runtime, "guest:plain")
        assert base.record.isolation == []
        assert _uid(base) == os.getuid()
        await release_all(site, supervisor)


def _uid(instance: Instance) -> int:
    assert instance.vm is not None
    return Path(f"/proc/{instance.vm.pid}").stat().st_uid
