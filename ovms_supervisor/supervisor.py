"""The supervisor: every instance of this host, each in a task of its own, under one task group.

An async context manager. Entering takes over what an earlier daemon left; leaving lets running machines go on, or
stops them, by ``settings.on_exit``. Methods may be called by any task, and cancelled: what has begun to change a
machine is finished or rolled back all the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus
from anyio.to_thread import run_sync

from cache.host_errors import host_errors
from cache.registry.pull import Pulled
from cache.registry.push import Pushed
from cache.resident import ResidentImages
from cache.store import Store
from cache.trust.gate import Gate
from cache.trust.policy_source import PolicySource
from ovms_supervisor.clock import Stopwatch
from ovms_supervisor.config import Settings
from ovms_supervisor.draining import drain
from ovms_supervisor.events import EventHub
from ovms_supervisor.housekeeping import Housekeeping
from ovms_supervisor.instance import Instance, Life, StopOrder
from ovms_supervisor.instance.adoption import Found, Progress, find_all
from ovms_supervisor.instance.capacity import Capacity
from ovms_supervisor.instance.creation import create, forget
from ovms_supervisor.instance.host import Host
from ovms_supervisor.instance.isolation import Isolation
from ovms_supervisor.instance.owned import owned
from ovms_supervisor.instance.pausing import pause, resume
from ovms_supervisor.instance.plan import Plan
from ovms_supervisor.instance.runtimes import Runtimes
from ovms_supervisor.instance.shared_devices import inject
from ovms_supervisor.instance.snapshot import names_registry, snapshot, snapshot_reference
from ovms_supervisor.instance.start import start
from ovms_supervisor.layout import Layout
from ovms_supervisor.memory_samples import MemorySamples, clone_memory
from ovms_supervisor.pool import Pool
from ovms_supervisor.pulling import Pulling
from ovms_supervisor.pushing import Pushing
from ovms_supervisor.readiness import host_troubles
from ovms_supervisor.residency import Residency
from ovms_supervisor.roster import Roster
from ovms_supervisor.start_queue import StartQueue
from spec.api import MmioWrite, PullPolicy, SnapshotReply, StartRequest, WarmPool, WarmRequest
from spec.digest import parse_digest
from spec.errors import Busy, CapacityExceeded, Conflict, InstanceNotFound, InvalidReference, WrongState
from spec.instance import InstanceState, is_live
from spec.reference import DigestSource, Reference
from vmm.driver import Driver, RuntimeName
from vmm.sandbox.launching import Launcher

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Supervisor:
    """Many machines. ``store`` has been created and ``images`` opened by the caller."""

    def __init__(
        self,
        settings: Settings,
        drivers: Mapping[RuntimeName, Driver],
        store: Store,
        images: ResidentImages,
        *,
        launcher: Launcher | None = None,
        progress: Progress = lambda _done, _of: None,
    ) -> None:
        """``progress`` hears how many of the machines of an earlier daemon have been taken over."""
        layout = Layout.of(settings)
        self.events = EventHub()
        runtimes = Runtimes(drivers)
        gate = Gate(store, PolicySource(settings.root, settings.policy))
        self._host = Host(
            settings=settings,
            layout=layout,
            store=store,
            images=images,
            gate=gate,
            drivers=drivers,
            runtimes=runtimes,
            capacity=Capacity(layout.image_dir, clone_memory(settings)),
            events=self.events,
            pulling=Pulling(settings, store, self.events, runtimes.platform, gate, Residency(images, store)),
            isolation=Isolation(settings.isolation, launcher),
        )
        self._pushing = Pushing(settings, store, self.events)
        self._roster = Roster()
        self.memory = MemorySamples(self._host.capacity, self._roster)
        self.pool = Pool(self._host, self._roster, self._begin, self._forget)
        self._starts = StartQueue(settings.max_starts)
        self.housekeeping = Housekeeping(self._host)
        self._lives: dict[str, Life] = {}
        self._snapshots: dict[str, anyio.Event] = {}
        self._progress = progress
        self._troubles: list[str] = []
        self._draining = False
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.callback(self.events.close)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            found, self._troubles = await find_all(self._host, self._progress)
            for each in found:
                await self._take_over(each)
            await self.pool.open(found)
            self._tasks.start_soon(self.pool.run, name="keep clones parked")
            self._tasks.start_soon(self.housekeeping.run, name="keep the store within its limit")
            self._tasks.start_soon(self._host.runtimes.reports, name="probe runtimes")
            self._tasks.start_soon(self.memory.run, name="sample memory")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draining = True
        try:
            await self.pool.close()
            await drain(self._host.settings, tuple(self._lives.values()), tuple(self._snapshots.values()))
            for instance in self.instances():
                await instance.save_what_was_not()
        finally:
            self._tasks.cancel_scope.cancel()
            await self._stack.aclose()  # what the block raised stays as it is: no group around it

    # --- what there is ------------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """Live and ended instances, oldest first."""
        return self._roster.all()

    def find(self, key: str) -> Instance:
        """By id, name, or unique prefix of at least 4 characters. Raises InstanceNotFound."""
        return self._roster.find(key)

    async def readiness(self) -> list[str]:
        """Why starts cannot be expected to work now; empty if they can."""
        draining = ["the daemon is ending"] if self._draining else []
        return [*draining, *self._troubles, *await host_troubles(self._host)]

    # --- what can be done ---------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> Instance:
        """Make an instance and let it start; returns as soon as it exists, ``starting``.

        Raises what is wrong with the request, the artifact or the host as far as that can be known beforehand:
        Invalid*, ArtifactNotFound, Unsupported*, IncompatibleSnapshot, ImmutableOverride, NameInUse,
        NoUsableRuntime, CapacityExceeded, Overloaded. What goes wrong later makes the instance ``failed``. It starts
        also if the caller goes away meanwhile.
        """
        if self._draining:
            raise Conflict("the daemon is ending and starts nothing any more", remedy="Start it on the next daemon.")
        with self._starts.admitted():
            return await owned(self._tasks, partial(self._start, request), "start")

    async def pull(
        self, reference: Reference, policy: PullPolicy, *, resident: bool = False, verify: bool | None = None
    ) -> Pulled:
        """Have the artifact of a reference with a registry in the store, and with ``resident`` its RAM in memory.

        ``verify``: whether the policy is asked first; None: as configured. Raises PolicyRejected, InvalidPolicy,
        ArtifactNotFound, Corrupt*, InvalidManifest, UnsupportedManifest, NoSpace, RegistryError and its kinds.
        """
        if self._draining:
            raise Conflict("the daemon is ending and pulls nothing any more")
        try:
            work = partial(self._host.pulling.pull, reference, policy, resident=resident, verify=verify)
            return await owned(self._tasks, work, "pull")
        finally:
            self.housekeeping.grown()

    async def push(self, source: Reference | DigestSource, reference: Reference) -> Pushed:
        """Store an artifact of the store in a registry.

        Raises ArtifactNotFound, BlobNotFound, Corrupt*, InvalidReference, RegistryError and its kinds.
        """
        if self._draining:
            raise Conflict("the daemon is ending and pushes nothing any more")
        return await owned(self._tasks, partial(self._pushing.push, source, reference), "push")

    async def stop(self, instance: Instance, timeout_s: float | None) -> None:
        """Let an instance end; returns once it is ``stopping``. None: the configured grace for the guest.

        Raises WrongState for an instance that has ended; one that is ending may be told again, and sooner.
        """
        grace_s = self._host.settings.stop_grace_s if timeout_s is None else timeout_s
        await self._life(instance, "stop").stop(StopOrder(grace_s, "stopped on request"))

    async def pause(self, instance: Instance) -> None:
        """Let the vCPUs stand still. Raises WrongState, Vmm*."""
        await self._life(instance, "pause").perform("pause", partial(pause, instance), InstanceState.RUNNING)

    async def resume(self, instance: Instance) -> None:
        """Let the vCPUs go on. Raises WrongState, Vmm*."""
        await self._life(instance, "resume").perform("resume", partial(resume, instance), InstanceState.PAUSED)

    async def remove(self, instance: Instance, *, force: bool) -> None:
        """Forget an ended instance and all that is left of it; ``force`` ends a live one first, without grace.

        Raises WrongState for a live one without ``force``.
        """
        if is_live(instance.state) and not force:
            instance.require("remove", InstanceState.STOPPED, InstanceState.FAILED)
        await owned(self._tasks, partial(self._remove, instance), "remove")

    async def snapshot(self, instance: Instance, tag: str, *, push: bool | None = None) -> SnapshotReply:
        """Make an artifact of a machine as it is now; it goes on as it was, running or paused.

        ``push``: store it in the registry too that its name has; None: if ``tag`` itself names that registry. Raises
        WrongState, Busy (one snapshot of an instance at a time), InvalidReference, Vmm*, NoSpace, and what pushing
        raises: then the snapshot is in the store all the same.
        """
        life = self._life(instance, "snapshot")
        instance.require("snapshot", InstanceState.RUNNING, InstanceState.PAUSED)
        if self._draining:
            raise Conflict("the daemon is ending and begins no snapshot any more")
        if instance.id in self._snapshots:
            raise Busy(f"a snapshot of instance {instance.name or instance.id} is under way", doing="snapshot")
        self._snapshots[instance.id] = anyio.Event()
        return await owned(self._tasks, partial(self._snapshot, life, tag, push), "snapshot")

    def inject_at_once(self, instance: Instance, writes: list[MmioWrite]) -> list[bytes] | None:
        """The same without any wait, which a few kilobytes are not worth; None if it has to wait for its turn."""
        life = self._life(instance, "inject")

        def work() -> list[bytes]:
            return inject(instance.running_vm().machine.devices, writes)

        return life.perform_at_once("inject", work, InstanceState.RUNNING, InstanceState.PAUSED)

    async def inject(self, instance: Instance, writes: list[MmioWrite]) -> list[bytes]:
        """Write to and read from shared-memory devices; returns what each read found.

        Raises WrongState, DeviceNotFound, OutOfRange, InvalidRequest; then nothing was written.
        """
        life = self._life(instance, "inject")

        async def work() -> list[bytes]:
            return await run_sync(inject, instance.running_vm().machine.devices, writes)

        return await life.perform("inject", work, InstanceState.RUNNING, InstanceState.PAUSED)

    async def order_parked(self, request: WarmRequest) -> WarmPool:
        """Keep clones of an artifact parked; see :meth:`Pool.order`."""
        return await owned(self._tasks, partial(self.pool.order, request), "warm")

    async def dissolve_parked(self, reference: str) -> None:
        """Keep none any more; see :meth:`Pool.dissolve`."""
        await owned(self._tasks, partial(self.pool.dissolve, reference), "warm")

    # --- inside -------------------------------------------------------------------------------------------------------

    def _life(self, instance: Instance, what: str) -> Life:
        if instance not in self._roster:
            raise InstanceNotFound(f"instance {instance.id} was removed")
        life = self._lives.get(instance.id)
        if life is None:
            raise WrongState(
                f"cannot {what} instance {instance.name or instance.id}: it is {instance.state}",
                status=instance.state.value,
            )
        return life

    async def _start(self, request: StartRequest) -> Instance:
        watch = Stopwatch()
        names = self._roster.reserved(request.overrides.name)
        with host_errors(self._host.settings.run_dir), names, self.pool.traffic.start():
            claimed, why_not = await self._with_room(partial(self.pool.claim, request, watch))
            if claimed is not None:
                return claimed
            instance, plan, held = await self._with_room(partial(create, self._host, request, watch))
            plan = replace(plan, not_claimed=why_not)
            self._roster.add(instance)
        instance.announce()
        await self._begin(Life(instance, partial(self._bring_up, plan=plan), held))
        return instance

    async def _with_room(self, work: Callable[[], Awaitable[T]]) -> T:
        """Parked clones give way before a start is refused."""
        while True:
            try:
                return await work()
            except CapacityExceeded as refused:
                if not await self.pool.give_way(refused):
                    raise

    async def _bring_up(self, life: Life, *, plan: Plan) -> None:
        async with self._starts.turn(plan.watch):
            with self.pool.traffic.start():
                await start(life, plan)

    async def _begin(self, life: Life) -> None:
        """Start the task of a life; it needs nobody else from then on."""
        self._lives[life.instance.id] = life
        await self._tasks.start(self._run, life, name=f"instance {life.instance.id}")

    async def _run(self, life: Life, *, task_status: TaskStatus[None]) -> None:
        try:
            await life.run(task_status=task_status)
        except Exception:
            _log.exception("the life of an instance broke", instance=life.instance.id)  # and not those of the others
        finally:
            self._lives.pop(life.instance.id, None)
        await self.pool.ended(life)

    async def _take_over(self, found: Found) -> None:
        self._roster.add(found.instance)
        if found.life is not None:
            await self._begin(found.life)

    async def _remove(self, instance: Instance) -> None:
        life = self._lives.get(instance.id)
        if life is not None:
            if is_live(instance.state):
                await life.stop(StopOrder(0, "removed by force"))
            await life.ended.wait()
        if instance not in self._roster and instance.record.pool is None:
            raise InstanceNotFound(f"instance {instance.id} was removed meanwhile")
        await self._forget(instance)

    async def _forget(self, instance: Instance) -> None:
        with anyio.CancelScope(shield=True):
            await run_sync(forget, self._host, instance.paths)
        if instance in self._roster:
            self._roster.remove(instance)
            instance.tell("instance.removed")

    async def _snapshot(self, life: Life, tag: str, push: bool | None) -> SnapshotReply:
        instance = life.instance
        try:
            base = await run_sync(self._host.store.artifact, parse_digest(instance.record.lineage))
            reference = snapshot_reference(instance, tag, base.manifest.name)
            if push is None:
                push = names_registry(tag)
            if push and reference.registry is None:
                raise InvalidReference(f"{reference} names no registry to push to")
            with host_errors(instance.paths.memory):
                made = await snapshot(life, reference)
        finally:
            self._snapshots.pop(instance.id).set()
            self.housekeeping.grown()
        return await self._pushing.push_snapshot(made, reference) if push else made
