"""The machine that guests see on QEMU: which devices, at which addresses, and where RAM lies.

A snapshot's device state fits only a machine with exactly these, so nothing here depends on anything but the
:class:`~vmm.driver.Machine` and may change only together with the version in :data:`REVISION`.
"""

from __future__ import annotations

from typing import Any

from spec.compatibility import DeviceRecord, MemoryRegion
from spec.sizes import GIB
from vmm.driver import Machine

REVISION = 1
"""Part of the recorded machine type: of two boards that differ, one must not continue the other's snapshot."""

_LARGE_RAM_BYTES = 0xB000_0000
_LARGE_RAM_LOW_BYTES = 2 * GIB
"""q35 keeps addresses up to 2.75 GiB for RAM, and with more RAM only 2 GiB, so that the rest is aligned."""

_ENTROPY_SLOT, _PANIC_SLOT, _FIRST_DISK_SLOT, _FIRST_IVSHMEM_SLOT = 2, 3, 4, 8
_FUNCTIONS = 8


def board_name(machine_type: str) -> str:
    """The recorded name of this board on a versioned machine type: ``pc-q35-7.2`` → ``pc-q35-7.2+1``."""
    return f"{machine_type}+{REVISION}"


def disk_id(number: int) -> str:
    """The id of a disk's device; its first block node has the same name."""
    return f"disk{number}"


def devices(machine: Machine) -> list[dict[str, Any]]:
    """The arguments of ``-device``, in order. ``master`` makes QEMU treat an ivshmem device as part of the machine,
    which comes along in a snapshot, instead of as a link to others that must be unplugged first."""
    found: list[dict[str, Any]] = [
        {"driver": "virtio-rng-pci", "id": "entropy", "addr": f"{_ENTROPY_SLOT:#x}"},
        {"driver": "pvpanic-pci", "id": "panic", "addr": f"{_PANIC_SLOT:#x}"},
        {"driver": "vmgenid", "id": "generation", "guid": "auto"},  # a clone's kernel learns that it is one
    ]
    found += [
        {
            "driver": "virtio-blk-pci",
            "id": disk_id(number),
            "drive": disk_id(number),
            **_address(_FIRST_DISK_SLOT, number),
        }
        for number in range(len(machine.disks))
    ]
    found += [
        {
            "driver": "ivshmem-plain",
            "id": f"ivshmem{number}",
            "memdev": f"shared{number}",
            "master": "on",
            **_address(_FIRST_IVSHMEM_SLOT, number),
        }
        for number in range(len(machine.devices))
    ]
    return found


def hardware(machine: Machine) -> dict[str, Any]:
    """All that the guest can see of the machine, without a host path: stored with a snapshot, equal on both sides."""
    return {
        "board": REVISION,
        "cpus": machine.cpus,
        "memory_bytes": machine.ram.size_bytes,
        "devices": devices(machine),
        "disks": [{"read_only": disk.read_only} for disk in machine.disks],
        "ivshmem": [device.size_bytes for device in machine.devices],
    }


def device_records(machine: Machine) -> list[DeviceRecord]:
    """The devices for the snapshot's header."""
    disks = [DeviceRecord(kind="disk", name=disk_id(number)) for number in range(len(machine.disks))]
    shared = [DeviceRecord(kind="ivshmem", name=each.name, size_bytes=each.size_bytes) for each in machine.devices]
    return disks + shared


def memory_regions(size_bytes: int) -> list[MemoryRegion]:
    """Where the guest sees the RAM file: one piece, or two around the PCI hole below 4 GiB."""
    low = size_bytes if size_bytes < _LARGE_RAM_BYTES else _LARGE_RAM_LOW_BYTES
    found = [MemoryRegion(name="ram-below-4g", guest_address=0, image_offset=0, size_bytes=low)]
    if size_bytes > low:
        found.append(
            MemoryRegion(name="ram-above-4g", guest_address=4 * GIB, image_offset=low, size_bytes=size_bytes - low)
        )
    return found


def _address(first_slot: int, number: int) -> dict[str, Any]:
    """A PCI address of its own for each device of a kind, whatever there is of the others."""
    slot, function = divmod(number, _FUNCTIONS)
    return {"addr": f"{first_slot + slot:#x}.{function}", "multifunction": "on"}
