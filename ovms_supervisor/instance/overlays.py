"""The overlay that an instance goes on with after a snapshot, over the one that the snapshot froze."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from anyio.to_thread import run_sync

from ovms_supervisor.instance import disks
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.layout import overlay_name
from spec.qcow2 import HEAD_BYTES, parse_header
from vmm.driver import Disk, Machine
from vmm.overlays import create_overlay


@dataclass(frozen=True, slots=True)
class NextOverlay:
    """One switch of one instance from the overlay ``frozen`` to ``disk``."""

    instance: Instance
    frozen: Disk
    disk: Disk

    @classmethod
    def of(cls, instance: Instance, machine: Machine, generation: int) -> NextOverlay | None:
        """For the machine's writable disk; None if it has none."""
        writable = [disk for disk in machine.disks if not disk.read_only]
        if not writable:
            return None
        (frozen,) = writable  # an artifact's layers are one disk
        return cls(instance, frozen, Disk(path=frozen.path.with_name(overlay_name(generation)), format="qcow2"))

    @property
    def disks(self) -> tuple[Disk, ...]:
        """The machine's disks after the switch."""
        return (self.disk,)

    async def create(self) -> None:
        """Make the new overlay. A persistent disk has it in its record before anything can be written to it."""
        await run_sync(self._create)

    def _create(self) -> None:
        with self.frozen.path.open("rb") as file:
            header = parse_header(file.read(HEAD_BYTES))
        create_overlay(self.disk.path, self.frozen.path, "qcow2", header.virtual_size_bytes)
        self._record(add=True)

    def note_switch(self) -> None:
        """The machine writes to the new overlay: the old one is a layer that waits to be stored."""
        record, machine = self.instance.record, self.instance.running_vm().machine
        if record.vm is not None:
            record.vm = msgspec.structs.replace(record.vm, machine=machine)
        if self.frozen.path not in record.pending_layers:
            record.pending_layers = [*record.pending_layers, self.frozen.path]

    async def settle(self) -> None:
        """Whatever happened: note the switch if the machine has made it, else remove the new overlay."""
        vm = self.instance.vm
        if vm is not None and any(disk.path == self.disk.path for disk in vm.machine.disks):
            self.note_switch()
        else:
            await run_sync(self._remove)

    def _remove(self) -> None:
        self._record(add=False)
        self.disk.path.unlink(missing_ok=True)

    def _record(self, *, add: bool) -> None:
        if self.instance.record.request.overrides.disk == "persistent":
            set_overlay(self.disk.path, add=add)


def set_overlay(overlay: Path, *, add: bool) -> None:
    """Add an overlay on top of a persistent disk's record, or take it away (blocks)."""
    record = disks.read_record(overlay.parent)
    others = [name for name in record.overlays if name != overlay.name]
    record.overlays = [*others, overlay.name] if add else others
    disks.write_record(overlay.parent, record)
