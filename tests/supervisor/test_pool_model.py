"""The pool against a model: orders, claims, deaths, faults, scarce memory and restarts of the daemon, in any order.

Whatever happened, once the pool is at rest it holds as many clones as were ordered (or as scarce memory leaves), all
standing still; every machine that was handed out goes on, under the name it was given; the host holds nothing else.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ovms_supervisor.instance import Instance
from ovms_supervisor.pool import refill as refill_module
from ovms_supervisor.pool import stock as stock_module
from ovms_supervisor.supervisor import Supervisor
from spec.api import WarmRequest
from spec.errors import NameInUse, NotFound
from spec.instance import InstanceState, is_live
from tests.supervisor.conftest import Site, start
from tests.supervisor.test_adoption import kill

T = TypeVar("T")

RUNNING, PARKED = InstanceState.RUNNING, InstanceState.PARKED
NAMES = st.sampled_from([None, None, "red", "blue"])
WHICH = st.integers(0, 3)
HOW = st.sampled_from(["refuse", "die"])
REFERENCE = "guest:warm"
_short: set[str] = set()
"""What the host is short of."""
_where: list[tuple[Path, Path]] = []


@pytest.fixture(autouse=True)
def place(tmpfs_mount: Path, guest_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tmpfs and the guest for the machine below; and the pool tries again soon."""
    monkeypatch.setattr(stock_module, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(stock_module, "_LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(refill_module, "shortage", lambda _reserve_bytes, _tmpfs: "so it is" if _short else None)
    _where.append((tmpfs_mount, guest_kernel))
    yield
    _where.pop()


@dataclass
class Machine:
    """One that was handed out."""

    id: str
    name: str | None


class PoolModel(RuleBasedStateMachine):
    """One host with a fake VMM, one artifact, and one daemon at a time."""

    def __init__(self) -> None:
        super().__init__()
        mount, kernel = _where[-1]
        self.directory = Path(tempfile.mkdtemp(prefix="ovms-", dir=mount))
        self.site = Site(self.directory, kernel)
        self.runner = asyncio.Runner()
        self.ordered: int | None = None
        self.machines: list[Machine] = []
        _short.clear()
        self.hits = self.misses = 0
        self.nonce = ""
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
        supervisor = await opened
        self.hits = self.misses = 0
        return supervisor

    async def _close(self) -> None:
        self.leave.set()
        await self.daemon

    def teardown(self) -> None:
        async def close() -> None:
            if self.ordered is not None:
                await self.supervisor.dissolve_parked(REFERENCE)
            for machine in self.machines:
                await self.supervisor.remove(self.supervisor.find(machine.id), force=True)
            async with asyncio.timeout(20):
                while self.supervisor.instances():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert await self.site.leaks([]) == []
            assert self.supervisor._host.capacity.promised_bytes == 0
            assert all(not each.references for each in self.supervisor._host.images._shelf.entries.values())
            await self._close()

        try:
            self.runner.run(close())
        finally:
            self.runner.close()
            shutil.rmtree(self.directory)

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            async with asyncio.timeout(20):
                return await work

        return self.runner.run(wait())

    def clones(self) -> list[Instance]:
        return [each for each in self.supervisor.instances() if each.state is PARKED]

    async def _rest(self) -> None:
        """Wait until the pool has nothing more to do."""
        while True:
            infos, instances = self.supervisor.pool.infos(), self.supervisor.instances()
            parked = sum(each.parked for each in infos)
            strays = [each for each in instances if each.state is not PARKED and each.record.pool is not None]
            filled = all(each.parking == 0 and (bool(_short) or each.parked == each.wanted) for each in infos)
            if filled and not strays and parked == len(self.clones()):
                return
            await asyncio.sleep(0.005)

    # --- rules ----------------------------------------------------------------------------------------------------

    @initialize()
    def artifact(self) -> None:
        async def make() -> None:
            original = await start(self.supervisor, "guest:disk")
            self.nonce = self.site.vm(original).guest.nonce
            await self.supervisor.snapshot(original, "warm")
            await self.supervisor.remove(original, force=True)

        self.run(make())

    @rule(count=st.integers(1, 3))
    def order(self, count: int) -> None:
        self.run(self.supervisor.order_parked(WarmRequest(manifest=REFERENCE, count=count)))
        if self.ordered is None:
            self.hits = self.misses = 0
        self.ordered = count

    @rule()
    def dissolve(self) -> None:
        try:
            self.run(self.supervisor.dissolve_parked(REFERENCE))
        except NotFound:
            assert self.ordered is None
        else:
            assert self.ordered is not None
        self.ordered = None

    @rule(name=NAMES, cold=st.booleans())
    def start(self, name: str | None, cold: bool) -> None:
        there = len(self.clones())
        taken = name is not None and any(each.name == name for each in self.machines)
        try:
            instance = self.run(start(self.supervisor, REFERENCE, name=name, boot="cold" if cold else None))
        except NameInUse:
            assert taken
            return
        assert not taken
        self.handed_out(instance, name, claimed=there > 0 and not cold and self.ordered is not None)

    @precondition(lambda self: self.ordered is not None)
    @rule(how=HOW)
    def start_whose_first_clone_fails(self, how: str) -> None:
        there = len(self.clones())
        if not there:
            return
        self.site.fake.faults["resume"] = how
        instance = self.run(start(self.supervisor, REFERENCE))
        self.handed_out(instance, None, claimed=there > 1)

    @rule(count=st.integers(2, 4))
    def burst(self, count: int) -> None:
        async def all_at_once() -> list[Instance]:
            return await asyncio.gather(*(start(self.supervisor, REFERENCE) for _ in range(count)))

        there = len(self.clones()) if self.ordered is not None else 0
        machines = self.run(all_at_once())
        assert len({each.id for each in machines}) == count, "a clone was handed out twice"
        claimed = sum(each.record.start is not None and each.record.start.path == "claimed" for each in machines)
        assert claimed >= min(there, count)
        self.hits += claimed
        self.misses += count - claimed if self.ordered is not None else 0
        self.machines += [Machine(each.id, None) for each in machines]

    def handed_out(self, instance: Instance, name: str | None, *, claimed: bool) -> None:
        assert instance.state is RUNNING
        assert instance.record.start is not None
        path = instance.record.start.path
        assert path == "claimed" if claimed else path in ("claimed", "restored", "booted")
        if self.ordered is not None:
            self.hits += path == "claimed"
            self.misses += path != "claimed"
        assert path == "booted" or self.site.vm(instance).guest.nonce == self.nonce
        self.machines.append(Machine(instance.id, name))

    @rule(how=HOW, step=st.sampled_from(["spawn", "restore"]))
    def the_next_restore_fails(self, how: str, step: str) -> None:
        if self.ordered is not None and not _short and (step, how) != ("spawn", "die") and self.clones():
            self.site.fake.faults[step] = how
            self.site.vm(self.clones()[0]).crash()
            self.run(self._struck(step))

    async def _struck(self, step: str) -> None:
        while step in self.site.fake.faults:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    @precondition(lambda self: self.ordered is not None)
    @rule(which=WHICH)
    def a_clone_dies(self, which: int) -> None:
        if clones := self.clones():
            victim = clones[which % len(clones)]
            self.site.vm(victim).crash()
            self.run(self._gone(victim))

    async def _gone(self, instance: Instance) -> None:
        while instance in self.supervisor.instances():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    @rule(short=st.booleans())
    def memory(self, short: bool) -> None:
        _short.clear()
        _short.update({"memory"} if short else ())

    @rule()
    def the_kernel_says_that_tasks_wait_for_memory(self) -> None:
        before = len(self.clones())
        self.supervisor.pool.refill.on_stall()
        if _short and before and self.ordered is not None:
            self.run(self._fewer_than(before))

    async def _fewer_than(self, count: int) -> None:
        while len(self.clones()) >= count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    @precondition(lambda self: self.machines)
    @rule(which=WHICH)
    def remove(self, which: int) -> None:
        machine = self.machines[which % len(self.machines)]
        self.run(self.supervisor.remove(self.supervisor.find(machine.id), force=True))
        self.machines.remove(machine)

    @rule(victim_at=st.one_of(st.none(), WHICH))
    def restart_the_daemon(self, victim_at: int | None) -> None:
        clones = self.clones()
        victim = clones[victim_at % len(clones)] if victim_at is not None and clones else None
        pid = self.site.vm(victim).pid if victim else None
        self.runner.run(self._close())
        if pid:
            kill(pid)
        self.supervisor = self.runner.run(self._open())
        known = {each.id for each in self.supervisor.instances()}
        assert {each.id for each in clones if each is not victim} <= known, "a clone was lost"

    # --- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def all_is_well_at_rest(self) -> None:
        self.run(self._rest())
        self.check_the_pool()
        self.check_machines_and_clones()
        assert self.runner.run(self.site.leaks(self.supervisor.instances())) == []

    def check_the_pool(self) -> None:
        infos = self.supervisor.pool.infos()
        if self.ordered is None:
            assert infos == []
            assert self.clones() == []
            return
        (info,) = infos
        assert info.wanted == self.ordered
        assert (info.hits, info.misses) == (self.hits, self.misses)
        assert info.parked <= self.ordered
        assert _short or info.parked == self.ordered

    def check_machines_and_clones(self) -> None:
        by_id = {each.id: each for each in self.supervisor.instances() if is_live(each.state)}
        assert by_id.keys() - {each.id for each in self.clones()} == {each.id for each in self.machines}
        for machine in self.machines:
            assert by_id[machine.id].name == machine.name
            assert self.site.vm(by_id[machine.id]).guest.going
        for clone in self.clones():
            guest = self.site.vm(clone).guest
            assert (guest.going, guest.nonce) == (False, self.nonce)


PoolModel.TestCase.settings = settings(settings.get_profile("local"), max_examples=12, stateful_step_count=20)
TestPool = PoolModel.TestCase
