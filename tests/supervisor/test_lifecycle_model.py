"""The lifecycle against a model: any order of operations, faults, crashes and restarts of the daemon.

After each step every instance is in the state that the model says, its guest is the one that it should be and going
or standing still as it should, and the host holds nothing that no live instance accounts for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from ovms_supervisor.instance import Instance
from ovms_supervisor.supervisor import Supervisor
from spec.errors import NameInUse, OvmsError, WrongState
from spec.instance import InstanceState, is_final, is_live
from tests.supervisor.conftest import Site, ended, start
from tests.supervisor.io_faults import IoFaults

T = TypeVar("T")

RUNNING, PAUSED = InstanceState.RUNNING, InstanceState.PAUSED
STOPPED, FAILED = InstanceState.STOPPED, InstanceState.FAILED
NAMES = st.sampled_from([None, "red", "blue"])
HOW = st.sampled_from(["refuse", "die", "hang up"])
DISK = st.builds(lambda at, error: (at, error), st.integers(0, 60), st.sampled_from([errno.ENOSPC, errno.EIO]))
"""Which operation on files fails, and how."""
_where: list[tuple[Path, Path]] = []


@pytest.fixture(autouse=True)
def place(tmpfs_mount: Path, guest_kernel: Path) -> Iterator[None]:
    """Where the machine below, which hypothesis makes, finds a tmpfs and the guest."""
    _where.append((tmpfs_mount, guest_kernel))
    yield
    _where.pop()


@dataclass
class Expected:
    """What the model knows of an instance."""

    id: str
    name: str | None
    state: InstanceState
    nonce: str


class Lifecycle(RuleBasedStateMachine):
    """One host with a fake VMM, and one daemon on it at a time."""

    instances = Bundle("instances")
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        mount, kernel = _where[-1]
        self.directory = Path(tempfile.mkdtemp(prefix="ovms-", dir=mount))
        self.site = Site(self.directory, kernel)
        self.runner = asyncio.Runner()
        self.model: dict[str, Expected] = {}
        self.nonces: dict[str, str] = {}
        self.supervisor: Supervisor = self.runner.run(self._open())

    async def _open(self) -> Supervisor:
        """A daemon in a task of its own, as a task group must be left by the task that entered it."""
        opened: asyncio.Future[Supervisor] = asyncio.get_running_loop().create_future()
        self.leave = asyncio.Event()

        async def live() -> None:
            async with self.site.daemon(on_exit="leave") as supervisor:
                opened.set_result(supervisor)
                await self.leave.wait()

        self.daemon = asyncio.create_task(live())
        self.daemon.add_done_callback(lambda task: opened.done() or opened.cancel() or task.result())
        return await opened

    async def _close(self) -> None:
        self.leave.set()
        await self.daemon

    def teardown(self) -> None:
        async def close() -> None:
            for instance in self.supervisor.instances():
                await self.supervisor.remove(instance, force=True)
            assert await self.site.leaks([]) == []
            assert self.supervisor._host.capacity.promised_bytes == 0
            assert all(not each.references for each in self.supervisor._host.images._shelf.entries.values())
            await self._close()

        try:
            self.runner.run(close())
        finally:
            self.runner.close()
            shutil.rmtree(self.directory)

    # --- how rules talk to the supervisor ----------------------------------------------------------------------------

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            async with asyncio.timeout(20):
                return await work

        return self.runner.run(wait())

    def find(self, expected: Expected) -> Instance:
        return self.supervisor.find(expected.id)

    def attempt(
        self, expected: Expected, allowed: set[InstanceState], work: Callable[[Instance], Awaitable[T]]
    ) -> T | None:
        """Do something; the model knows whether the state allows it."""
        try:
            result = self.run(work(self.find(expected)))
        except WrongState:
            assert expected.state not in allowed
            return None
        assert expected.state in allowed
        return result

    # --- rules ----------------------------------------------------------------------------------------------------

    @initialize(target=snapshots)
    def artifact(self) -> str:
        return "guest:disk"

    @rule(target=instances, manifest=snapshots, name=NAMES)
    def start(self, manifest: str, name: str | None) -> Expected:
        taken = name is not None and any(each.name == name for each in self.model.values())
        try:
            instance = self.run(start(self.supervisor, manifest, name=name))
        except NameInUse:
            assert taken
            return Expected("", None, FAILED, "")
        assert not taken
        assert instance.state is RUNNING, instance.record.exit
        expected = Expected(instance.id, name, RUNNING, self.site.vm(instance).guest.nonce)
        if manifest in self.nonces:
            assert expected.nonce == self.nonces[manifest], "the clone is not one of its snapshot"
        self.model[instance.id] = expected
        return expected

    @rule(manifest=snapshots, step=st.sampled_from(["spawn", "boot", "restore"]), how=HOW)
    def start_that_fails(self, manifest: str, step: str, how: str) -> None:
        restores = manifest in self.nonces
        if step == ("boot" if restores else "restore") or (step, how) == ("spawn", "die"):
            return
        self.site.fake.faults[step] = how
        instance = self.run(start(self.supervisor, manifest))
        assert instance.state is FAILED
        self.model[instance.id] = Expected(instance.id, None, FAILED, "")

    @rule(expected=instances)
    def stop(self, expected: Expected) -> None:
        if expected.id not in self.model:
            return

        async def work(instance: Instance) -> None:
            await self.supervisor.stop(instance, None)
            await ended(instance)

        self.attempt(expected, {RUNNING, PAUSED}, work)
        if not is_final(expected.state):
            expected.state = STOPPED

    @rule(expected=instances)
    def pause(self, expected: Expected) -> None:
        if expected.id in self.model:
            self.attempt(expected, {RUNNING}, lambda instance: self.supervisor.pause(instance))
            expected.state = PAUSED if expected.state is RUNNING else expected.state

    @rule(expected=instances)
    def resume(self, expected: Expected) -> None:
        if expected.id in self.model:
            self.attempt(expected, {PAUSED}, lambda instance: self.supervisor.resume(instance))
            expected.state = RUNNING if expected.state is PAUSED else expected.state

    @rule(target=snapshots, expected=instances, tag=st.sampled_from(["one", "two", "three"]))
    def snapshot(self, expected: Expected, tag: str) -> str:
        if expected.id in self.model:
            reply = self.attempt(
                expected, {RUNNING, PAUSED}, lambda each: self.supervisor.snapshot(each, f"snap:{tag}")
            )
            if reply is not None:
                self.nonces[reply.reference] = expected.nonce
                return reply.reference
        return "guest:disk"

    @rule(expected=instances, step=st.sampled_from(["spawn", "pause", "save", "complete", "restore"]), how=HOW)
    def snapshot_that_fails(self, expected: Expected, step: str, how: str) -> None:
        if expected.id not in self.model or is_final(expected.state):
            return
        instance = self.find(expected)
        vm = self.site.vm(instance)
        self.site.fake.faults[step] = how
        reached = len(self.site.fake.calls)
        try:
            reply = self.run(self.supervisor.snapshot(instance, "snap:faulty"))
        except OvmsError:
            assert "snap:faulty" not in self.nonces or step in self.site.fake.calls[reached:]
        else:
            self.nonces[reply.reference] = expected.nonce
        struck = step not in self.site.fake.faults
        self.site.fake.faults.clear()
        if struck and how == "die" and vm.process.exited is not None and instance.vm in (vm, None):
            self.run(ended(instance))
            expected.state = FAILED

    @rule(expected=instances, how=HOW)
    def pause_or_resume_that_fails(self, expected: Expected, how: str) -> None:
        if expected.id not in self.model or is_final(expected.state):
            return
        instance = self.find(expected)
        step = "pause" if expected.state is RUNNING else "resume"
        self.site.fake.faults[step] = how
        with pytest.raises(OvmsError):
            self.run(self.supervisor.pause(instance) if step == "pause" else self.supervisor.resume(instance))
        if how == "die":
            assert self.run(ended(instance)) is FAILED
            expected.state = FAILED

    @rule(expected=instances, disk=DISK)
    def snapshot_on_a_bad_disk(self, expected: Expected, disk: tuple[int, int]) -> None:
        if expected.id not in self.model or is_final(expected.state):
            return
        with IoFaults(self.directory, *disk).active(), suppress(OvmsError):
            self.run(self.supervisor.snapshot(self.find(expected), "snap:bad"))

    @rule(manifest=snapshots, disk=DISK)
    def start_and_stop_on_a_bad_disk(self, manifest: str, disk: tuple[int, int]) -> None:
        with IoFaults(self.directory, *disk).active(), suppress(OvmsError):
            instance = self.run(start(self.supervisor, manifest))
            expected = FAILED
            if instance.state is RUNNING:
                self.run(self.supervisor.stop(instance, 0))
                expected = STOPPED
            assert self.run(ended(instance)) is expected
            self.model[instance.id] = Expected(instance.id, None, expected, "")

    @rule(expected=instances, end=st.sampled_from(["power off", "panic", "crash"]))
    def guest_ends(self, expected: Expected, end: str) -> None:
        if expected.id not in self.model or is_final(expected.state):
            return
        instance = self.find(expected)
        vm = self.site.vm(instance)
        match end:
            case "power off":
                vm.power_off()
            case "panic":
                vm.panic()
            case _:
                vm.crash(signal.SIGSEGV)
        expected.state = STOPPED if end == "power off" else FAILED
        assert self.run(ended(instance)) is expected.state

    @rule(expected=consumes(instances), force=st.booleans())
    def remove(self, expected: Expected, force: bool) -> None:
        if expected.id not in self.model:
            return
        try:
            self.run(self.supervisor.remove(self.find(expected), force=force))
        except WrongState:
            assert is_live(expected.state)
            assert not force
            self.run(self.supervisor.remove(self.find(expected), force=True))
        del self.model[expected.id]

    @rule()
    def restart_the_daemon(self) -> None:
        self.runner.run(self._close())
        self.supervisor = self.runner.run(self._open())

    @precondition(lambda self: any(is_live(each.state) for each in self.model.values()))
    @rule(data=st.data())
    def crash_while_the_daemon_is_away(self, data: st.DataObject) -> None:
        live = [each for each in self.model.values() if is_live(each.state)]
        victim = data.draw(st.sampled_from(live))
        vm = self.site.vm(self.find(victim))
        self.runner.run(self._close())
        os.kill(vm.pid, signal.SIGKILL)
        os.waitpid(vm.pid, 0)
        self.supervisor = self.runner.run(self._open())
        assert self.run(ended(self.find(victim))) is FAILED
        victim.state = FAILED

    # --- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def states_are_as_expected(self) -> None:
        assert {each.id: each.state for each in self.supervisor.instances()} == {
            each.id: each.state for each in self.model.values()
        }

    @invariant()
    def guests_are_as_expected(self) -> None:
        for expected in self.model.values():
            if is_live(expected.state):
                guest = self.site.vm(self.find(expected)).guest
                assert (guest.nonce, guest.going) == (expected.nonce, expected.state is RUNNING)

    @invariant()
    def nothing_leaks(self) -> None:
        assert self.runner.run(self.site.leaks(self.supervisor.instances())) == []


Lifecycle.TestCase.settings = settings(settings.get_profile("local"), max_examples=20, stateful_step_count=30)
TestLifecycle = Lifecycle.TestCase
