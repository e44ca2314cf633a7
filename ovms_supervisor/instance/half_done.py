"""What an operation left when the daemon ended in the middle of it: finished if it had taken effect, else undone."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import msgspec

from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.overlays import set_overlay
from ovms_supervisor.instance.process_identity import has_open, is_same
from ovms_supervisor.instance.record import Doing, VmRecord
from spec.errors import VmmRefused
from spec.instance import InstanceState


async def finish_half_done(instance: Instance) -> None:
    """Bring a machine that was just attached to into the state that its journal tells. Raises Vmm*."""
    doing = instance.record.doing
    if doing is not None:
        match doing.what:
            case "pause":
                await _pause(instance)
            case "resume" | "claim":
                await _go_on(instance)
            case "snapshot":
                await _settle_snapshot(instance)
        instance.record.doing = None
        await instance.save()


async def _pause(instance: Instance) -> None:
    with suppress(VmmRefused):  # it stands still already
        await instance.running_vm().pause()
    if instance.state is InstanceState.RUNNING:
        await instance.become(InstanceState.PAUSED, "paused on request, finished by the next daemon")


async def _go_on(instance: Instance) -> None:
    with suppress(VmmRefused):  # it runs already
        await instance.running_vm().resume()
    if instance.state is InstanceState.PAUSED:
        await instance.become(InstanceState.RUNNING, "resumed on request, finished by the next daemon")


async def _settle_snapshot(instance: Instance) -> None:
    """Whichever process it is now goes on: its successor, or the one before it, if there was none yet that could."""
    if instance.state is InstanceState.RUNNING:
        with suppress(VmmRefused):
            await instance.running_vm().resume()


def take_successor(instance: Instance) -> VmRecord | None:
    """Make the process that a snapshot was about to go on with the instance's; returns the one before, to be ended.

    None if there is none: the snapshot had not come so far, or the process is gone. May be done again by a daemon that
    finds it half done.
    """
    record = instance.record
    doing, before = record.doing, record.vm
    if doing is None or doing.successor is None or before is None:
        return None
    if not is_same(doing.successor.pid, doing.successor.start_ticks):
        return None
    if doing.overlay is not None:
        frozen = [disk.path for disk in before.machine.disks if not disk.read_only]
        known = record.pending_layers
        record.pending_layers = [*known, *(path for path in frozen if path not in known)]
    record.vm, record.image = doing.successor, None
    record.doing = Doing(what="snapshot")
    if not before.machine.ram.private:
        before.machine.ram.path.unlink(missing_ok=True)
    return before


def settle_files(instance: Instance) -> None:
    """Before the process is attached to: which disk it writes to, and which files nobody uses (blocks)."""
    record = instance.record
    doing = record.doing
    if doing is None or doing.what != "snapshot" or record.vm is None:
        return
    if doing.overlay is None and record.generation == record.vm.generation:
        return  # the successor's, which has taken its place
    if record.generation != record.vm.generation:
        instance.paths.ram(record.generation).unlink(missing_ok=True)
    if doing.overlay is None:
        return
    if has_open(record.vm.pid, doing.overlay):  # it had switched, in place
        machine = record.vm.machine
        record.pending_layers = [*record.pending_layers, *(disk.path for disk in machine.disks)]
        disks = tuple(replace(disk, path=doing.overlay) for disk in machine.disks)
        record.vm = msgspec.structs.replace(record.vm, machine=replace(machine, disks=disks))
    else:
        if record.request.overrides.disk == "persistent":
            set_overlay(doing.overlay, add=False)
        doing.overlay.unlink(missing_ok=True)
