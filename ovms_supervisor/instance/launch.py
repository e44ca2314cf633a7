"""The VMM process of an instance: started cold, or continued from a snapshot."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from ovms_supervisor.clock import Stopwatch
from ovms_supervisor.instance.holdings import hold_vm
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.isolation import missing_layers
from ovms_supervisor.instance.process_identity import start_ticks
from ovms_supervisor.instance.record import VmRecord
from spec.fault_points import reach
from vmm.driver import Driver, Machine, Vm, VmmFiles


async def launch(
    instance: Instance,
    driver: Driver,
    machine: Machine,
    state_dir: Path | None,
    undo: AsyncExitStack,
    watch: Stopwatch,
    *,
    resume: bool = True,
) -> None:
    """Start the process and let the vCPUs run; ``state_dir`` is that of the snapshot to continue from. Raises Vmm*.

    Without ``resume`` a machine that is restored stands still.
    """
    hold_vm(instance, undo)
    restoring = state_dir is not None
    isolated = await instance.host.isolation.available()
    with watch.phase("spawn"):
        vm = instance.vm = await driver.spawn(machine, files_of(instance, 0), incoming=restoring)
        reach("start.spawned")
        # Now, while the process waits for commands: no guest runs that a later daemon would not know by its pid.
        instance.record.vm = record_of(vm, 0)
        await instance.save()
        reach("start.recorded")
    first_look = isolated and instance.host.isolation.required  # before the guest has run at all
    with watch.phase("restore" if restoring else "boot"):
        if state_dir is not None:
            await vm.restore(state_dir, resume=resume and not first_look)
        if first_look:
            await note_isolation(instance, vm)
        if state_dir is None:
            await vm.boot()
        elif first_look and resume:
            await vm.resume()
    if isolated and not first_look:
        await note_isolation(instance, vm)


async def note_isolation(instance: Instance, vm: Vm) -> None:
    """Read back what confines the process. Raises IsolationMissing, VmmExited."""
    isolation, ram = instance.host.isolation, vm.machine.ram
    instance.record.isolation = await isolation.layers(vm, ram.path if ram.private else None)
    if missing := missing_layers(instance.record.isolation):
        instance.degrade("isolation.incomplete", f"the VMM runs without {missing}")


def files_of(instance: Instance, generation: int) -> VmmFiles:
    """Where a VMM process of the instance puts its files."""
    paths = instance.paths
    image = instance.image.directory if instance.image else None
    return VmmFiles(
        directory=paths.directory,
        console=paths.console,
        log=paths.vmm_log,
        generation=generation,
        confinement=instance.host.isolation.confinement(instance.id, image, instance.host.images.staging_dir),
    )


def files_of_running(instance: Instance) -> VmmFiles:
    """The files of the process that an earlier daemon started, confined or not as its journal says."""
    files = files_of(instance, instance.record.vm.generation if instance.record.vm else 0)
    return replace(files, confinement=instance.host.isolation.of_running(instance.id, instance.record.isolation))


def record_of(vm: Vm, generation: int) -> VmRecord:
    """The process as a later daemon will recognise it. Raises VmmExited if it is gone already."""
    return VmRecord(pid=vm.pid, start_ticks=start_ticks(vm.pid), generation=generation, machine=vm.machine)
