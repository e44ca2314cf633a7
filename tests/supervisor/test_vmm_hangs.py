"""VMMs that stop answering: what was asked for fails in bounded time, status says so, and a stop ends them."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from ovms_supervisor.instance import Instance, journal
from ovms_supervisor.supervisor import Supervisor
from spec.errors import OvmsError, VmmRefused, VmmTimeout
from spec.instance import InstanceState
from tests.supervisor.conftest import Site, ended, start
from tests.supervisor.test_real_guests import latest, runtime, start_real, ticks
from vmm.driver import RuntimeName

__all__ = ["runtime"]

RUNNING, PAUSED, STOPPED = InstanceState.RUNNING, InstanceState.PAUSED, InstanceState.STOPPED


def codes(instance: Instance) -> list[str]:
    return [each.code for each in instance.record.degraded]


@pytest.mark.parametrize("how", ["refuse", "hang up"])
@pytest.mark.parametrize("what", ["pause", "resume"])
async def test_what_failed_is_not_finished_by_the_next_daemon(site: Site, what: str, how: str) -> None:
    """The caller was told that the machine goes on as it was: so it does, whoever is the daemon."""
    async with site.daemon(on_exit="leave") as supervisor:
        instance = await start(supervisor)
        if what == "resume":
            await supervisor.pause(instance)
        before = instance.state
        site.fake.faults[what] = how
        if how != "refuse":  # neither the call nor its opposite is answered
            site.fake.faults["resume" if what == "pause" else "pause"] = how
        with pytest.raises(OvmsError):
            await (supervisor.pause if what == "pause" else supervisor.resume)(instance)
        assert instance.state is before
        assert codes(instance) == ([] if how == "refuse" else ["vmm.not_answering"])
        assert (await asyncio.to_thread(journal.read, instance.paths.journal)).doing is None
    async with site.daemon() as supervisor:
        again = supervisor.find(instance.id)
        assert (again.state, site.vm(again).guest.going) == (before, before is RUNNING)
        await (supervisor.pause if before is RUNNING else supervisor.resume)(again)
        assert codes(again) == []


@pytest.mark.real
async def test_a_vmm_that_is_stopped_by_a_signal(
    site: Site, runtime: RuntimeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "vmm.qemu.vm" if runtime == "qemu" else "vmm.cloud_hypervisor.vm"
    async with site.daemon() as supervisor:
        victim = await start_real(supervisor, runtime, "guest:plain", name="victim")
        other = await start_real(supervisor, runtime, "guest:plain", name="other")
        await ticks(victim, 1)
        assert victim.vm is not None
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}._CALL_LIMIT_S", 0.5)
            os.kill(victim.vm.pid, signal.SIGSTOP)
            await _gives_up(supervisor, victim)
            assert len(await ticks(other, 2, since=await latest(other))) == 2
            os.kill(victim.vm.pid, signal.SIGCONT)
        await _goes_on(supervisor, victim)

        os.kill(victim.vm.pid, signal.SIGSTOP)
        for limit in ("_QUIT_LIMIT_S", "_TERMINATE_LIMIT_S"):
            monkeypatch.setattr(f"{module}.{limit}", 0.2)
        await supervisor.stop(victim, 0.2)
        assert await ended(victim) is STOPPED
        assert victim.record.exit is not None
        assert victim.record.exit.reason == "stopped on request; its VMM had to be killed"
        assert other.state is RUNNING
        assert await site.leaks(supervisor.instances()) == []


async def _gives_up(supervisor: Supervisor, victim: Instance) -> None:
    """Everything that needs the VMM says in time that it does not answer; status needs nothing of it."""
    info = await victim.info()
    assert info.status is RUNNING
    assert info.metrics.memory is not None
    with pytest.raises(VmmTimeout, match="no reply to"):
        await supervisor.pause(victim)
    assert (victim.state, codes(victim)) == (RUNNING, ["vmm.not_answering"])
    with pytest.raises(VmmTimeout, match="no reply to"):
        await supervisor.snapshot(victim, "late")
    assert (victim.state, codes(victim)) == (PAUSED, ["vmm.not_answering", "snapshot.not_resumed"])


async def _goes_on(supervisor: Supervisor, victim: Instance) -> None:
    """It answers again; a resume, of which the first may find it running, is all that it takes."""
    before = await latest(victim)
    try:
        await supervisor.resume(victim)
    except VmmRefused:
        await supervisor.resume(victim)
    assert (victim.state, codes(victim)) == (RUNNING, [])
    await ticks(victim, 1, since=before)
