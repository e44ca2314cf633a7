"""Taking over what an earlier daemon left: running machines are re-adopted, everything half done is finished or undone.

The journals say what should be there, the kernel says what is. Where a journal tells of a running machine, the
process is looked for by pid, start time and boot id, attached to, and given a life that goes on. All others get a
life that only ends: it gives back what they held and says why. A process that does not answer is ended, since nobody
could control it; so is one, or a directory removed, that no journal accounts for. A journal that cannot be read is left
alone, with everything that may belong to it, and reported.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial

import anyio
import structlog
from anyio.to_thread import run_sync

from ovms_supervisor.instance import endings, holdings, journal
from ovms_supervisor.instance.claims import claim
from ovms_supervisor.instance.half_done import finish_half_done, settle_files, take_successor
from ovms_supervisor.instance.host import Host
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.launch import files_of_running
from ovms_supervisor.instance.life import Life, StopOrder
from ovms_supervisor.instance.process_identity import boot_id, is_same, processes_of, start_ticks
from ovms_supervisor.instance.record import Record
from spec.digest import parse_digest
from spec.errors import CorruptStore, OvmsError, VmmExited
from spec.instance import InstanceState, is_final
from vmm.process import VmmProcess

_log = structlog.get_logger(__name__)

_WITH_VMM = (InstanceState.PARKED, InstanceState.RUNNING, InstanceState.PAUSED, InstanceState.STOPPING)
_AT_ONCE = 32
_INTERRUPTED = "the daemon ended while it was starting"


@dataclass(frozen=True, slots=True)
class Found:
    """An instance of an earlier daemon; ``life`` is what is still to be lived, None if it has ended before."""

    instance: Instance
    life: Life | None


@dataclass(frozen=True, slots=True)
class _Scan:
    records: list[Record]
    troubles: list[str]
    strays: dict[int, int]
    """Processes that no journal of a running machine accounts for: pid and start time."""
    boot_id: str


Progress = Callable[[int, int], None]
"""Called with how many have been taken over, of how many."""


async def find_all(host: Host, progress: Progress = lambda _done, _of: None) -> tuple[list[Found], list[str]]:
    """All instances that an earlier daemon left, oldest first, and what could not be made sense of.

    Some at a time: a machine that does not answer keeps thousands of others waiting for seconds, not for minutes.
    """
    scan = await run_sync(_scan, host)
    await _side_by_side([partial(_end_stray, pid, ticks) for pid, ticks in scan.strays.items()])
    await run_sync(_sweep, host, {record.instance_id for record in scan.records}, bool(scan.troubles))
    found: list[Found | None] = [None] * len(scan.records)
    done = itertools.count(1)

    async def take_over(position: int, record: Record) -> None:
        found[position] = await _take_over(host, record, scan.boot_id)
        progress(next(done), len(found))

    await _side_by_side([partial(take_over, *each) for each in enumerate(scan.records)])
    return [each for each in found if each is not None], scan.troubles


async def _side_by_side(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    remaining = iter(works)

    async def work() -> None:
        for each in remaining:
            await each()

    async with anyio.create_task_group() as tasks:
        for _ in range(min(_AT_ONCE, len(works))):
            tasks.start_soon(work)


async def _end_stray(pid: int, ticks: int) -> None:
    _log.warning("ending a VMM that no journal accounts for", pid=pid)
    await _kill(pid, ticks)


def _scan(host: Host) -> _Scan:
    host.layout.instances.mkdir(mode=0o700, parents=True, exist_ok=True)
    records: list[Record] = []
    troubles: list[str] = []
    unreadable: set[str] = set()
    for directory in sorted(host.layout.instances.iterdir()):
        path = host.layout.of_instance(directory.name).journal
        if not path.exists():  # its first record was never written: it was promised to nobody
            shutil.rmtree(directory, ignore_errors=True)
            continue
        try:
            records.append(journal.read(path))
        except CorruptStore as error:
            troubles.append(f"{path}: {error.detail}")
            unreadable.add(directory.name)
    boot = boot_id()
    known = {
        (vm.pid, vm.start_ticks)
        for each in records
        if each.boot_id == boot and each.state in _WITH_VMM
        for vm in (each.vm, each.doing.successor if each.doing else None)
        if vm
    }
    strays: dict[int, int] = {}
    for pid, instance_id in processes_of(host.layout.instances).items():
        if instance_id in unreadable:
            continue
        with suppress(VmmExited):
            if (pid, ticks := start_ticks(pid)) not in known:
                strays[pid] = ticks
    return _Scan(sorted(records, key=lambda record: record.created_at), troubles, strays, boot)


def _sweep(host: Host, known: set[str], keep_strangers: bool) -> None:
    """Remove directories of instances that no journal knows, and snapshots that were not stored."""
    shutil.rmtree(host.layout.storing, ignore_errors=True)
    if keep_strangers:
        return
    for parent in (host.layout.instance_memory, host.layout.instance_disks):
        for directory in parent.iterdir() if parent.exists() else ():
            if directory.name not in known:
                shutil.rmtree(directory, ignore_errors=True)
    try:
        host.store.disclaim_for_the_dead()
    except OvmsError:
        _log.exception("what machines that are gone have claimed is kept until something is pruned")


async def _kill(pid: int, ticks: int) -> None:
    """End a process that nobody holds; another one that has got its pid is left alone."""
    with suppress(OvmsError):
        process = VmmProcess.attach(pid)
        if await run_sync(is_same, pid, ticks):  # now that the pidfd holds on to it
            await process.kill_ladder([])
        else:
            process.release()


async def _take_over(host: Host, record: Record, boot: str) -> Found:
    instance = Instance(host, record)
    try:
        await instance.console.open()
    except OSError as error:
        instance.degrade("logs.not_indexed", f"the console cannot be opened: {error}")
    try:
        await run_sync(
            claim, host.store, instance.paths, {parse_digest(record.manifest.digest), parse_digest(record.lineage)}
        )
    except OvmsError as error:
        instance.degrade("artifact.not_held", f"its artifact may be removed from the store: {error}")
    if is_final(record.state):
        await instance.console.close(record.state.value)
        return Found(instance, None)
    undo = AsyncExitStack()
    await _promise(instance, undo)
    try:
        await _attach(instance, boot)
    except (endings.Lost, OvmsError) as error:
        lost = error if isinstance(error, endings.Lost) else endings.Lost(f"it could not be taken over: {error}")
        return Found(instance, await _ending(instance, lost, undo))
    _log.info("re-adopted", instance=record.instance_id, pid=record.vm and record.vm.pid, state=record.state)
    instance.tell("instance.adopted")
    return Found(instance, Life(instance, _as_it_is, undo))


async def _promise(instance: Instance, undo: AsyncExitStack) -> None:
    """The same promises that the start of the instance made."""
    host, record = instance.host, instance.record
    owned_bytes = sum(device.size_bytes for device in record.devices)
    if record.vm is not None and record.vm.machine.ram.path.parent == instance.paths.memory:
        owned_bytes += record.memory_bytes
    holdings.hold_reservation(host, undo, host.capacity.take_over(owned_bytes, instance.paths.memory))
    if record.image is not None:
        seat = host.capacity.clones.take_over(parse_digest(record.image), parked=record.pool is not None)
        holdings.hold_seat(instance, undo, seat)
    holdings.hold_directory(instance, undo)
    holdings.hold_image(instance, undo)
    holdings.hold_memory(instance, undo)
    if record.request.overrides.disk != "persistent":
        holdings.hold_disks(instance, undo)
    holdings.hold_vm(instance, undo)


async def _attach(instance: Instance, boot: str) -> None:
    """Take hold of the process. Raises Lost with the reason, or Vmm*."""
    host, record = instance.host, instance.record
    if record.boot_id != boot:
        raise endings.Lost("the host was rebooted")
    if record.state is InstanceState.STARTING or record.vm is None:
        raise endings.Lost(_INTERRUPTED)
    before = await run_sync(take_successor, instance)
    if before is not None:
        await _kill(before.pid, before.start_ticks)
        await instance.save()
    if not await run_sync(is_same, record.vm.pid, record.vm.start_ticks):
        raise endings.Lost("the VMM ended while no daemon was watching; how is not known")
    driver = host.driver(record.runtime.name)
    await run_sync(settle_files, instance)
    try:
        vm = await driver.attach(record.vm.machine, files_of_running(instance), record.vm.pid)
    except OvmsError:
        await _kill(record.vm.pid, record.vm.start_ticks)
        raise
    instance.vm = vm
    if not await run_sync(is_same, record.vm.pid, record.vm.start_ticks):  # now it is held by a pidfd
        raise VmmExited(f"process {record.vm.pid} ended at the last moment", pid=record.vm.pid)
    await _retain_image(instance)
    await finish_half_done(instance)


async def _retain_image(instance: Instance) -> None:
    """A machine whose image is no longer to be had keeps what it has mapped: no reason to end it."""
    record = instance.record
    if record.image is None:
        return
    try:
        instance.image = await instance.host.images.retain(
            parse_digest(record.image), mlock_required=record.mlock_required
        )
        for entry in instance.image.degraded:
            instance.degrade(entry.code, entry.detail)
    except OvmsError as error:
        instance.degrade("image.not_held", f"after a restart of the daemon: {error}")


async def _ending(instance: Instance, lost: endings.Lost, undo: AsyncExitStack) -> Life:
    """A life that begins with its end."""

    async def fail(_: Life) -> None:
        raise lost

    life = Life(instance, fail, undo)
    if instance.state is InstanceState.STOPPING:
        life.was_told_to_stop(StopOrder(0, "stopped on request"))
    return life


async def _as_it_is(life: Life) -> None:
    """The machine runs: there is nothing to begin. One that was being stopped goes on with that."""
    if life.instance.state is InstanceState.STOPPING:
        life.was_told_to_stop(StopOrder(0, "stopped on request"))
    await anyio.lowlevel.checkpoint()
