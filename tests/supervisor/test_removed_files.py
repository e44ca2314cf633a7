"""An operator removes what a machine needs from under it: status says so, and everything else still works."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from ovms_supervisor.instance import Instance
from spec.errors import OvmsError
from spec.instance import InstanceState
from tests.supervisor.conftest import Site, ended, start
from tests.supervisor.test_real_guests import runtime, start_real, ticks
from vmm.driver import RuntimeName

__all__ = ["runtime"]

RUNNING, PAUSED, STOPPED = InstanceState.RUNNING, InstanceState.PAUSED, InstanceState.STOPPED


async def until_degraded(instance: Instance, code: str) -> None:
    async with asyncio.timeout(10):
        while code not in [each.code for each in (await instance.info()).degraded]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def removed(site: Site, instance: Instance, what: str) -> list[Path]:
    match what:
        case "directory":
            return [instance.paths.directory]
        case "run dir":
            return [site.directory / "run" / "instances"]
        case "memory":
            return [instance.paths.memory]
        case "disks":
            return [instance.paths.disks]
        case _:
            return [instance.paths.directory, instance.paths.memory, instance.paths.disks]


@pytest.mark.parametrize("what", ["directory", "run dir", "memory", "disks", "all"])
async def test_stop_and_remove_work_whatever_is_gone(site: Site, what: str) -> None:
    async with site.daemon() as supervisor:
        other = await start(supervisor)
        instance = await start(supervisor, "guest:disk", name="web")
        for path in removed(site, instance, what):
            await asyncio.to_thread(shutil.rmtree, path)
        if what in ("directory", "run dir", "all"):
            await until_degraded(instance, "logs.removed")
        await supervisor.pause(instance)
        assert instance.state is PAUSED
        try:
            await supervisor.snapshot(instance, "guest:late")
        except OvmsError:
            pass  # told, and nothing else happened
        else:
            assert what in ("directory", "run dir")
        assert instance.state is PAUSED
        await supervisor.resume(instance)
        await supervisor.stop(instance, 0)
        assert await ended(instance) is STOPPED
        await supervisor.remove(instance, force=False)
        assert other.state is RUNNING
        await start(supervisor, "guest:disk", name="web")
        assert await site.leaks(supervisor.instances()) == []


async def test_the_journal_is_there_again_for_the_next_daemon(site: Site) -> None:
    async with site.daemon(on_exit="leave") as supervisor:
        instance = await start(supervisor)
        pid = site.vm(instance).pid
        await asyncio.to_thread(shutil.rmtree, site.directory / "run" / "instances")
        await supervisor.pause(instance)
    async with site.daemon() as supervisor:
        again = supervisor.find(instance.id)
        assert (again.state, site.vm(again).pid) == (PAUSED, pid)
        await supervisor.remove(again, force=True)
        assert await site.leaks(supervisor.instances()) == []


@pytest.mark.real
async def test_a_real_vmm_whose_directory_is_gone(site: Site, runtime: RuntimeName) -> None:
    async with site.daemon() as supervisor:
        instance = await start_real(supervisor, runtime, "guest:disk")
        await ticks(instance, 1)
        await asyncio.to_thread(shutil.rmtree, instance.paths.directory)
        await until_degraded(instance, "logs.removed")
        await supervisor.stop(instance, 0)
        assert await ended(instance) is STOPPED
        await supervisor.remove(instance, force=False)
        assert await site.leaks(supervisor.instances()) == []
