"""What a RAM snapshot needs of the machine that continues it, and the check before a restore."""

from __future__ import annotations

import msgspec

from spec.errors import IncompatibleSnapshot


class MemoryRegion(msgspec.Struct, frozen=True, kw_only=True):
    """A contiguous piece of guest RAM: where the guest sees it, where it lies in the image; all in bytes."""

    name: str
    guest_address: int
    image_offset: int
    size_bytes: int


class DeviceRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device that the guest has seen: a restored machine must have the same, in the same order."""

    kind: str
    """``disk``, ``ivshmem``, …"""
    name: str
    size_bytes: int | None = None


class Compatibility(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Recorded in the ramsnap header when the snapshot is taken."""

    runtime: str
    """``qemu`` or ``cloud-hypervisor``."""
    version: str
    machine_type: str
    """``pc-q35-7.2``, ``cloud-hypervisor``: the layout of devices that the guest has seen."""
    accelerator: str
    """``kvm`` or ``tcg``."""
    cpu_model: str
    """The CPU model shown to the guest (``max``, ``host``)."""
    cpu_vendor: str = ""
    cpu_flags: list[str] = []
    """Host CPU flags that the guest may use, sorted; empty where the CPU is emulated."""
    memory_bytes: int
    cpus: int
    regions: list[MemoryRegion]
    devices: list[DeviceRecord] = []


class RestoreTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The side that would continue the snapshot: one runtime on this host."""

    runtime: str
    version: str
    machine_type: str
    accelerator: str
    cpu_model: str
    cpu_vendor: str = ""
    cpu_flags: list[str] = []


def check_restorable(recorded: Compatibility, target: RestoreTarget) -> None:
    """Raise IncompatibleSnapshot, naming both sides, unless the target can continue the snapshot.

    Versions are compared exactly: neither VMM promises that its device state can be read by another release.
    """
    for what in ("runtime", "version", "machine_type", "accelerator", "cpu_model", "cpu_vendor"):
        made, here = getattr(recorded, what), getattr(target, what)
        if made != here:
            raise IncompatibleSnapshot(
                f"{what.replace('_', ' ')}: the snapshot was made with {made!r}, this is {here!r}",
                property=what,
                snapshot=made,
                host=here,
            )
    missing = sorted(set(recorded.cpu_flags) - set(target.cpu_flags))
    if missing:
        raise IncompatibleSnapshot(
            f"CPU flags: the snapshot's guest may use {', '.join(missing[:12])}, which this host's CPU lacks",
            property="cpu_flags",
            missing=missing,
        )
