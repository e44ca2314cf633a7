"""A machine in Cloud Hypervisor's own words: its ``VmConfig``.

The configuration of a clone is made anew from the machine, never taken from the snapshot: a snapshot may come from
anywhere, and ``config.json`` in it could name any file of this host. What is stored in a snapshot is the configuration
without a host path (:func:`hardware`), and it has to be equal on both sides.
"""

from __future__ import annotations

from typing import Any

from spec.compatibility import DeviceRecord
from spec.errors import UnsupportedManifest
from vmm.driver import Disk, Machine

_IMAGE_TYPES = {"qcow2": "Qcow2", "raw": "Raw"}


def vm_config(machine: Machine) -> dict[str, Any]:
    """The body of vm.create, and the config.json of vm.restore. Raises UnsupportedManifest for two ivshmem devices.

    Every identifier is given, since device state is looked up by it. The serial port is "Tty", which is the standard
    output of the process whatever that is: appended to, where "File" truncates what it is given, at each restore.
    """
    config: dict[str, Any] = {
        "cpus": {"boot_vcpus": machine.cpus, "max_vcpus": machine.cpus},
        "memory": {
            "size": 0,  # all of it is in the zone
            "zones": [
                {
                    "id": "ram",
                    "size": machine.ram.size_bytes,
                    "file": str(machine.ram.path),
                    "shared": not machine.ram.private,
                }
            ],
        },
        "payload": _payload(machine),
        "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        "pvpanic": True,
    }
    if machine.disks:
        config["disks"] = [_disk(f"disk{number}", disk) for number, disk in enumerate(machine.disks)]
    if len(machine.devices) > 1:
        raise UnsupportedManifest("Cloud Hypervisor has one ivshmem device at most", limit="one ivshmem device")
    for device in machine.devices:
        config["ivshmem"] = {"id": "ivshmem0", "path": str(device.path), "size": device.size_bytes}
    return config


def hardware(machine: Machine) -> dict[str, Any]:
    """What of the configuration the guest can see: without paths, and without the payload, which has been loaded."""
    config = vm_config(machine)
    del config["payload"], config["serial"], config["console"]
    for holder, key in [
        *((zone, "file") for zone in config["memory"]["zones"]),
        *((zone, "shared") for zone in config["memory"]["zones"]),
        *((disk, "path") for disk in config.get("disks", ())),
        *((device, "path") for device in [config.get("ivshmem")] if device),
    ]:
        del holder[key]
    return config


def device_records(machine: Machine) -> list[DeviceRecord]:
    """The devices for the snapshot's header."""
    disks = [DeviceRecord(kind="disk", name=f"disk{number}") for number in range(len(machine.disks))]
    shared = [DeviceRecord(kind="ivshmem", name=each.name, size_bytes=each.size_bytes) for each in machine.devices]
    return disks + shared


def _payload(machine: Machine) -> dict[str, str]:
    payload = {"kernel": str(machine.kernel), "cmdline": machine.kernel_args}
    if machine.initrd is not None:
        payload["initramfs"] = str(machine.initrd)
    return payload


def _disk(identifier: str, disk: Disk) -> dict[str, Any]:
    return {
        "id": identifier,
        "path": str(disk.path),
        "readonly": disk.read_only,
        "image_type": _IMAGE_TYPES[disk.format],
        "backing_files": disk.format == "qcow2",
    }
