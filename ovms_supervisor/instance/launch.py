"""The VMM process of an instance: started cold, or continued from a snapshot."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from ovms_supervisor.clock import Stopwatch
from ovms_supervisor.instance.holdings import hold_vm
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.process_identity import start_ticks
from ovms_supervisor.instance.record import VmRecord
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
    with watch.phase("spawn"):
        vm = instance.vm = await driver.spawn(machine, files_of(instance, 0), incoming=restoring)
        # Now, while the process waits for commands: no guest runs that a later daemon would not know by its pid.
        instance.record.vm = record_of(vm, 0)
        await instance.save()
    with watch.phase("restore" if restoring else "boot"):
        if state_dir is not None:
            await vm.restore(state_dir, resume=resume)
        else:
            await vm.boot()


def files_of(instance: Instance, generation: int) -> VmmFiles:
    """Where a VMM process of the instance puts its files."""
    paths = instance.paths
    return VmmFiles(directory=paths.directory, console=paths.console, log=paths.vmm_log, generation=generation)


def record_of(vm: Vm, generation: int) -> VmRecord:
    """The process as a later daemon will recognise it. Raises VmmExited if it is gone already."""
    return VmRecord(pid=vm.pid, start_ticks=start_ticks(vm.pid), generation=generation, machine=vm.machine)
