"""The life of an instance: one task that starts it, waits for its end, and gives everything back.

::

    begin (start steps, or re-adoption) → running ⇄ operations, one at a time → the end → undo → stopped | failed

The task belongs to the supervisor. Whoever calls an operation may go away: the operation runs in a task group of this
life and is finished, or rolled back, without them. The end comes from a stop order, from the VMM, or with the daemon,
which leaves the machine running.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import anyio
import structlog
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus

from cache.resident import ResidentImage
from ovms_supervisor.instance import endings
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.operations import Operations
from spec.errors import InternalError, OvmsError
from spec.fault_points import reach
from spec.instance import InstanceState, is_final
from vmm.driver import Ending, Vm

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_RUNS = (InstanceState.PARKED, InstanceState.RUNNING, InstanceState.PAUSED)
_LIVE = (InstanceState.STARTING, *_RUNS)


@dataclass(frozen=True, slots=True)
class StopOrder:
    """Somebody wants it to end: why, and how long the guest may take to power itself off."""

    grace_s: float
    cause: str


class Life:
    """Runs one instance. Made, and its :meth:`run` started, by the supervisor."""

    def __init__(self, instance: Instance, begin: Callable[[Life], Awaitable[None]], undo: AsyncExitStack) -> None:
        self.instance = instance
        self.undo = undo
        """Promises to give things back; ``undo`` may hold some from before."""
        self.ended = anyio.Event()
        """The state is final and nothing is held any more, or the daemon has let go of it."""
        self._begin = begin
        self._beginning = anyio.CancelScope()
        self._tasks: TaskGroup | None = None
        self._operations = Operations(instance)
        self._order: StopOrder | None = None
        self._grace: anyio.CancelScope | None = None
        self._failure: Exception | None = None
        self._given_back = False
        self._oom_kills: int | None = None

    # --- what the supervisor asks for -----------------------------------------------------------------------------

    async def stop(self, order: StopOrder) -> None:
        """Let it end; returns once that is on its way.

        Stopping twice is no error; a shorter grace than the one that is running cuts it short.
        Raises WrongState if it has ended.
        """
        instance = self.instance
        if instance.state is InstanceState.STOPPING:
            if self._order is None or order.grace_s < self._order.grace_s:
                self._order = order
                if self._grace is not None:
                    self._grace.cancel()
            return
        instance.require("stop", *_LIVE)
        if instance.state is not InstanceState.RUNNING:
            order = StopOrder(0, order.cause)  # nobody there yet, or awake, who could power off
        self._order = order
        try:
            await instance.become(InstanceState.STOPPING, order.cause)
            reach("stop.journal")
        finally:
            self._beginning.cancel()
            self._operations.end()

    def was_told_to_stop(self, order: StopOrder) -> None:
        """For a machine that is taken over while stopping: go on with that."""
        self._order = order
        self._operations.end()

    async def perform(self, what: str, work: Callable[[], Awaitable[T]], *allowed: InstanceState) -> T:
        """Run an operation on the machine, after those before it, whatever becomes of the caller.

        Raises WrongState unless the instance is then in one of the states, or if it ends meanwhile.
        """
        assert self._tasks is not None  # noqa: S101 - the supervisor lists an instance when its task has begun
        return await self._operations.perform(self._tasks, what, work, allowed)

    def perform_at_once(self, what: str, work: Callable[[], T], *allowed: InstanceState) -> T | None:
        """The result of ``work`` without any wait, or None if another operation is under way. Raises WrongState."""
        return self._operations.at_once(what, work, allowed)

    def take_image(self, image: ResidentImage) -> bool:
        """Hold a resident image from now on, whose reference the caller has; False if the end has been."""
        if self._given_back:
            return False
        self.instance.image = image
        self.instance.record.image = image.digest
        return True

    def watch(self, vm: Vm) -> None:
        """Notice the end of a process; of one that is no longer the instance's, nothing is concluded."""
        assert self._tasks is not None  # noqa: S101 - called from within the task group
        self._tasks.start_soon(self._watch, vm, name=f"watch {vm.pid}")

    # --- the task ---------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """The whole life. Raises nothing but cancellation, which means that the daemon goes."""
        instance = self.instance
        self._oom_kills = endings.oom_kills()
        try:
            async with anyio.create_task_group() as self._tasks:
                task_status.started()
                with self._beginning:
                    try:
                        await self._begin(self)
                    except Exception as error:  # whatever it was, the instance has failed and says so
                        self._failure = error
                if self._failure is None and not self._beginning.cancelled_caught:
                    self.watch(instance.running_vm())
                    await self._operations.wait_ended()
                await self._operations.wait_idle()  # what was under way has been rolled back
                self._tasks.cancel_scope.cancel()
            await self._give_back()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._let_go()
            raise
        finally:
            self.ended.set()

    async def _give_back(self) -> None:
        """End the process, undo everything, and only then say so."""
        instance = self.instance
        with anyio.CancelScope(shield=True):
            ending = None
            try:
                ending = await self._end_vm()
            except Exception as error:  # a process that outlives SIGKILL, or a driver that breaks its promise
                self._failure, self._order = error, None  # it did not end as ordered
            reach("stop.ended")
            concluded = await anyio.to_thread.run_sync(self._conclude, ending)
            if concluded.state is InstanceState.FAILED:
                instance.error = concluded.error
                unforeseen = self._failure if isinstance(concluded.error, InternalError) else None
                _log.warning("instance failed", instance=instance.id, reason=concluded.reason, exc_info=unforeseen)
            await instance.console.close(concluded.state.value)
            lines = await self._last_lines()
            self._given_back = True
            await self._undo()
            reach("stop.undone")
            instance.vm = instance.record.vm = instance.record.doing = None
            instance.record.image = None
            exit_info = endings.exit_info(ending, concluded.reason, lines)
            await instance.become(concluded.state, concluded.reason, exit=exit_info)
            reach("stop.final")

    async def _end_vm(self) -> Ending | None:
        """Stop the process if there is one; a hastened stop order cuts the grace of the one before."""
        vm = self.instance.vm
        while vm is not None:
            order = self._order
            with anyio.CancelScope() as self._grace:
                return await vm.stop(guest_grace_s=order.grace_s if order else 0)
        return None

    def _conclude(self, ending: Ending | None) -> endings.Conclusion:
        ordered = self._order.cause if self._order else None
        return endings.conclude(ending, ordered=ordered, failure=self._failure, oom_kills_before=self._oom_kills)

    async def _last_lines(self) -> list[str]:
        try:
            return await self.instance.console.last_lines(endings.CONSOLE_LINES)
        except (OSError, OvmsError):
            return []

    async def _undo(self) -> None:
        try:
            await self.undo.aclose()
        except Exception:
            # The stack has gone on with the others; what could not be given back is in the log.
            _log.exception("not everything was given back", instance=self.instance.id)

    async def _let_go(self) -> None:
        """The daemon goes. A machine that runs goes on; a start that is under way is undone."""
        instance = self.instance
        if instance.state in _RUNS and instance.vm is not None:
            self.undo.pop_all()
            await instance.save_what_was_not()
            await instance.console.close(None)
            await instance.vm.detach()
        elif not is_final(instance.state):
            self._failure = self._failure or endings.Lost("the daemon ended while it was starting")
            await self._give_back()

    async def _watch(self, vm: Vm) -> None:
        try:
            await vm.wait_ended()
        except Exception:
            _log.exception("the end of a VMM cannot be watched", instance=self.instance.id, pid=vm.pid)
        if self.instance.vm is vm:
            self._operations.end()
