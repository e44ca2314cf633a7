"""The command line of one QEMU process. No I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmm.driver import Machine, VmmFiles
from vmm.qemu.board import devices
from vmm.qemu.installation import Installation

_TRANSLATION_CACHE_MIB = 64
"""Of translated guest code per machine; by default it grows to 1 GiB, private to each clone."""

_BOARD = ("vmport=off", "usb=off", "sata=off", "smbus=off", "smm=off")
"""What q35 has by default and no guest of ours needs: each device costs boot time and state."""


_CONSOLE_SET = 1

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""QEMU's own filter of system calls: nothing that it needs once it runs."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What the process is given open, by number: a listening socket, and the console to append to."""

    qmp: int
    console: int


def command_line(
    installation: Installation,
    machine: Machine,
    files: VmmFiles,
    *,
    disks: Sequence[dict[str, Any]],
    fds: Descriptors,
    incoming: bool,
) -> list[str]:
    """The argument vector; ``disks`` are the block nodes of the machine's disks.

    An incoming machine gets no kernel: that has long been in the RAM that it continues from, and QEMU would read it
    into the heap of each clone.
    """
    board = f"{installation.machine_type},{','.join(_BOARD)},memory-backend=ram"
    argv = [str(installation.binary), "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-name", _escaped(f"ovms-{files.directory.name}")]
    argv += ["-machine", f"{board},suppress-vmdesc=on" if incoming else board]
    argv += ["-accel", _accelerator(installation), "-cpu", installation.cpu_model, "-smp", str(machine.cpus)]
    argv += ["-m", f"{machine.ram.size_bytes}B", "-object", json.dumps(_ram(installation, machine))]
    for number, device in enumerate(machine.devices):
        argv += ["-object", json.dumps(_memory(f"shared{number}", device.path, device.size_bytes, shared=True))]
    for node in disks:
        argv += ["-blockdev", json.dumps(node)]
    for each in devices(machine):
        argv += ["-device", ",".join(f"{key}={value}" for key, value in each.items())]
    argv += ["-add-fd", f"fd={fds.console},set={_CONSOLE_SET}"]
    argv += ["-chardev", f"file,id=console,path=/dev/fdset/{_CONSOLE_SET},append=on"]
    argv += ["-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=qmp,fd={fds.qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    if files.confinement is not None:
        argv += ["-sandbox", _SANDBOX]
    argv += ["-S", "-action", "panic=shutdown,reboot=shutdown,shutdown=poweroff"]
    if incoming:
        return [*argv, "-incoming", "defer", "-global", "migration.send-configuration=off"]
    argv += ["-kernel", str(machine.kernel.absolute()), "-append", machine.kernel_args]
    if machine.initrd is not None:
        argv += ["-initrd", str(machine.initrd.absolute())]
    return argv


def _accelerator(installation: Installation) -> str:
    if installation.accelerator == "kvm":
        return "kvm"
    return f"tcg,thread=multi,tb-size={_TRANSLATION_CACHE_MIB}"


def _ram(installation: Installation, machine: Machine) -> dict[str, Any]:
    ram = machine.ram
    backend = _memory("ram", ram.path, ram.size_bytes, shared=not ram.private)
    if ram.private and installation.maps_read_only_images:
        backend |= {"readonly": True, "rom": "off"}
    return backend


def _memory(name: str, path: Path, size_bytes: int, *, shared: bool) -> dict[str, Any]:
    return {
        "qom-type": "memory-backend-file",
        "id": name,
        "size": size_bytes,
        "mem-path": str(path.absolute()),
        "share": shared,
    }


def _escaped(value: str) -> str:
    """A value in QEMU's key=value syntax."""
    return value.replace(",", ",,")
