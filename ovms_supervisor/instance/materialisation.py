"""From a plan to a machine whose every part lies on disk or in tmpfs: verified, and its own where it can write."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from anyio import to_thread

from cache.store import Store
from ovms_supervisor.instance import disks, shared_devices
from ovms_supervisor.instance.holdings import hold_disks, hold_memory
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.plan import Plan
from spec.fault_points import reach
from vmm.driver import DEEPEST_DISK, Disk, Machine, Ram, SharedMemory


async def materialise(instance: Instance, plan: Plan, undo: AsyncExitStack) -> Machine:
    """Make everything that the VMM will open. Raises Corrupt*, NoSpace, MlockLimit, InUse, ImmutableOverride.

    All files are made in one visit of a thread: with the image resident, hops between threads are what a start consists
    of.
    """
    hold_memory(instance, undo)
    if plan.artifact.manifest.disk_layers and not plan.persistent_disk:
        hold_disks(instance, undo)
    ram, state_dir = await _ram(instance, plan)
    reach("start.image")
    async with instance.console.opening() as open_file:
        return await to_thread.run_sync(_machine, instance, plan, ram, state_dir, open_file)


def _machine(
    instance: Instance, plan: Plan, ram: Ram, state_dir: Path | None, open_console: Callable[[], None]
) -> Machine:
    open_console()
    instance.paths.memory.mkdir(mode=0o700, parents=True)
    kernel, initrd = _kernel(instance.host.store, plan)
    disk = _disk(instance, plan)
    devices = tuple(
        SharedMemory(name=each.name, path=instance.paths.shared_memory(each.name), size_bytes=each.size_bytes)
        for each in plan.devices
    )
    shared_devices.make(devices, state_dir)
    return Machine(
        cpus=plan.cpus,
        ram=ram,
        kernel=kernel,
        initrd=initrd,
        kernel_args=plan.kernel_args,
        disks=(disk,) if disk else (),
        devices=devices,
    )


def _disk(instance: Instance, plan: Plan) -> Disk | None:
    store, artifact = instance.host.store, plan.artifact
    if not artifact.manifest.disk_layers:
        return None
    most_layers = _most_layers(plan.runtime.name)
    if plan.persistent_disk:
        assert instance.name is not None  # noqa: S101 - admission demands it
        directory = instance.host.layout.persistent_disk(instance.name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # No lock: names are unique among the instances of a daemon, and daemons among those of a root.
        must_be_new = plan.boot == "restore"
        return disks.persistent(store, artifact, directory, must_be_new=must_be_new, most_layers=most_layers)
    instance.paths.disks.mkdir(mode=0o700, parents=True)
    return disks.ephemeral(store, artifact, instance.paths.disks, most_layers=most_layers)


def _most_layers(runtime: str) -> int | None:
    """Half of what the VMM can open: the other half is for the overlays that snapshots of this machine will freeze."""
    deepest = DEEPEST_DISK.get(runtime)
    return None if deepest is None else deepest // 2


async def _ram(instance: Instance, plan: Plan) -> tuple[Ram, Path | None]:
    """RAM of its own for a cold boot; for a restore that of the resident image, with its state directory."""
    snapshot = plan.artifact.manifest.ram_snapshot
    if plan.ramsnap is None or snapshot is None:
        return Ram(path=instance.paths.ram(0), size_bytes=plan.memory_bytes, private=False), None
    digest, images = plan.ramsnap.content_digest, instance.host.images
    async with images.lease(
        digest,
        instance.host.store.blob_path(digest),
        mlock_required=snapshot.mlock_required,
        preload=snapshot.preload_hint,
    ) as image:
        await images.retain(digest)
        instance.image = image
    instance.record.image = digest
    for entry in image.degraded:
        instance.degrade(entry.code, entry.detail)
    return Ram(path=image.ram, size_bytes=plan.memory_bytes, private=True), image.state_dir


def _kernel(store: Store, plan: Plan) -> tuple[Path, Path | None]:
    """Paths of kernel and initrd, verified now: what lies in the store may have changed since it was put there."""
    kernel, initrd = plan.artifact.kernel, plan.artifact.initrd
    return store.verify_blob(kernel), store.verify_blob(initrd) if initrd else None
