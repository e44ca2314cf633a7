"""One instance: who it is, the state it is in, and what its status tells."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from ovms_supervisor.clock import utc_now
from ovms_supervisor.instance.clone_memory import Seat
from ovms_supervisor.instance.host import Host
from ovms_supervisor.instance.journal import Journal
from ovms_supervisor.instance.record import Record
from ovms_supervisor.logs.console_log import ConsoleLog
from spec.errors import OvmsError, WrongState
from spec.instance import (
    Degradation,
    ExitInfo,
    InstanceInfo,
    InstanceState,
    MemoryMetrics,
    Metrics,
    is_final,
    may_become,
)
from vmm.driver import Vm
from vmm.memory_counters import MemoryCounters

if TYPE_CHECKING:
    from cache.resident import ResidentImage

NOT_RESUMED: Final = "snapshot.not_resumed"
"""A degradation: it is paused only because its VMM did not let it go on after a snapshot."""

_NOT_WRITTEN: Final = "journal.not_written"

_COUNTED_FOR_S = 0.25
"""So long the memory of a machine is not asked for again: some poll its status thousands of times a second."""

_log = structlog.get_logger(__name__)


class Instance:
    """A virtual machine from the moment it is admitted until it is removed.

    Everything that must survive the daemon is in ``record``; the rest is how this daemon holds on to it.
    """

    def __init__(self, host: Host, record: Record) -> None:
        self.host = host
        self.record = record
        self.paths = host.layout.of_instance(record.instance_id)
        self.journal = Journal(self.paths.journal)
        self.console = ConsoleLog(
            self.paths.console, self.paths.console_index, limit_bytes=host.settings.log_limit_bytes
        )
        self.vm: Vm | None = None
        self.image: ResidentImage | None = None
        self._counted: tuple[Vm, MemoryCounters, float] | None = None
        self.seat: Seat | None = None
        """Of a clone: its place in the count of memory."""
        self.error: OvmsError | None = None
        """What made it fail, if this daemon saw it: for a caller that waits for the start."""
        self._waiters: dict[asyncio.Future[InstanceState], frozenset[InstanceState]] = {}
        self._log = _log.bind(instance=record.instance_id, name=record.name)

    @property
    def id(self) -> str:
        """A UUID."""
        return self.record.instance_id

    @property
    def name(self) -> str | None:
        """Unique among the instances that have one."""
        return self.record.name

    @property
    def state(self) -> InstanceState:
        """The state it is in now."""
        return self.record.state

    def require(self, what: str, *allowed: InstanceState) -> None:
        """Raise WrongState unless the instance is in one of the states that ``what`` needs."""
        if self.state not in allowed:
            raise WrongState(
                f"cannot {what} instance {self.name or self.id}: it is {self.state}, "
                f"which must be {' or '.join(allowed)}",
                status=self.state.value,
                allowed=[state.value for state in allowed],
            )

    def announce(self) -> None:
        """Tell everybody that it exists."""
        self._log.info("instance created", artifact=self.record.manifest.ref, boot=self.record.boot)
        self.tell(f"instance.{self.state}", cause="requested")

    def tell(self, type: str, cause: str | None = None) -> None:  # noqa: A002 - the word of the event's own field
        """Publish an event about it, unless it is a parked clone: a machine that nobody has asked for yet."""
        if self.record.pool is None:
            self.host.events.publish(type, instance_id=self.id, name=self.name, cause=cause)

    def claimed(self, record: Record) -> None:
        """A parked clone has become somebody's machine, which runs; ``record`` is what its journal says now.

        Nothing is logged here: the caller waits, and the log has a thread that would now want to run.
        """
        self.record = record
        self._log = _log.bind(instance=record.instance_id, name=record.name)
        self.tell(f"instance.{InstanceState.STARTING}", cause="requested")
        self.tell(f"instance.{record.state}", cause="claimed a parked clone")
        self._wake(record.state)

    async def become(self, new: InstanceState, cause: str, *, exit: ExitInfo | None = None) -> None:  # noqa: A002
        """The one way from state to state: changed at once, then written down, logged, told to everybody.

        Raises WrongState if the table has no such arrow: somebody else was faster.
        """
        old = self.state
        if not may_become(old, new):
            raise WrongState(
                f"instance {self.name or self.id} is {old} and cannot become {new}: {cause}", status=old.value
            )
        self.record.state = new
        now = utc_now()
        if new is InstanceState.RUNNING and self.record.started_at is None:
            self.record.started_at = now
        if is_final(new):
            self.record.stopped_at, self.record.exit = now, exit
        try:
            await self.save()
        finally:  # cancelled or not, it is so
            tell = self._log.debug if self.record.pool is not None else self._log.info
            tell("instance state", old=old, new=new, cause=cause)
            self.tell(f"instance.{new}", cause)
            self._wake(new)

    def running_vm(self) -> Vm:
        """The VMM process. Raises WrongState if there is none."""
        if self.vm is None:
            raise WrongState(f"instance {self.name or self.id} has no VMM: it is {self.state}", status=self.state.value)
        return self.vm

    async def save(self) -> None:
        """Write the record down. What cannot be written degrades the instance until it can, but does not end it."""
        self.is_well_again(_NOT_WRITTEN)
        try:
            await self.journal.write(self.record)
        except (OSError, OvmsError) as error:
            self._log.exception("journal not written")
            self.degrade(_NOT_WRITTEN, f"a restarted daemon may not know it as it is: {error}")

    async def save_what_was_not(self) -> None:
        """Try again, before another daemon reads the journal."""
        if any(known.code == _NOT_WRITTEN for known in self.record.degraded):
            await self.save()

    def degrade(self, code: str, detail: str) -> None:
        """Note something that was asked for and is not so; the same code once."""
        if all(known.code != code for known in self.record.degraded):
            self.record.degraded.append(Degradation(code=code, detail=detail))
            self._log.warning("degraded", code=code, detail=detail)

    def is_well_again(self, code: str) -> None:
        """Take back what :meth:`degrade` noted."""
        self.record.degraded = [known for known in self.record.degraded if known.code != code]

    async def wait_for(self, *states: InstanceState) -> InstanceState:
        """Return the state as soon as it is one of these, or final."""
        if self.state in states or is_final(self.state):
            return self.state
        reached: asyncio.Future[InstanceState] = asyncio.get_running_loop().create_future()
        self._waiters[reached] = frozenset(states)
        try:
            return await reached
        finally:
            del self._waiters[reached]

    async def info(self) -> InstanceInfo:
        """The status, with the memory as the kernel counts it now."""
        record = self.record
        trouble = self.console.degraded
        return InstanceInfo(
            instance_id=record.instance_id,
            name=record.name,
            status=record.state,
            manifest=record.manifest,
            boot=record.boot,
            runtime=record.runtime,
            pid=record.vm.pid if record.vm else None,
            memory_bytes=record.memory_bytes,
            cpus=record.cpus,
            devices=record.devices,
            created_at=record.created_at,
            started_at=record.started_at,
            stopped_at=record.stopped_at,
            exit=record.exit,
            degraded=[*record.degraded, *([trouble] if trouble else [])],
            metrics=Metrics(start=record.start, memory=self.memory()),
            trust=record.trust,
            isolation=record.isolation,
        )

    def memory(self) -> MemoryMetrics | None:
        """The kernel's counters of the process: exact figures would have it walk page tables for milliseconds."""
        vm, image = self.vm, self.image
        if vm is None:
            return None
        now = time.monotonic()
        if self._counted is None or self._counted[0] is not vm or now > self._counted[2] + _COUNTED_FOR_S:
            try:
                self._counted = (vm, vm.memory_counters(), now)
            except (OSError, OvmsError):
                return None  # it ended meanwhile; the life of the instance is about to tell
        counted = self._counted[1]
        shares = vm.machine.ram.private  # a machine that was booted cold has its RAM, also a tmpfs file, to itself
        return MemoryMetrics(
            total_bytes=self.record.memory_bytes,
            shared_bytes=counted.shared_bytes if shares else 0,
            private_bytes=counted.anonymous_bytes + (0 if shares else counted.shared_bytes),
            locked_bytes=image.locked_bytes if image else 0,
        )

    def _wake(self, state: InstanceState) -> None:
        for reached, states in self._waiters.items():
            if not reached.done() and (state in states or is_final(state)):
                reached.set_result(state)
