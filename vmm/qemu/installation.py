"""What this host's QEMU is, and what it can do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spec.compatibility import RestoreTarget
from spec.errors import MissingTool
from vmm.cpu import HostCpu, host_cpu
from vmm.driver import Limitation, RuntimeReport
from vmm.qemu.board import board_name
from vmm.spawn import clean_environment

BINARY = "qemu-system-x86_64"
_KVM = Path("/dev/kvm")
_ANSWER_LIMIT_S = 20.0
_VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)")
_MACHINE_TYPE = re.compile(r"^q35 .*\(alias of (pc-q35-[0-9.]+)\)", re.MULTILINE)
_INSTALL = "apt-get install qemu-system-x86"

_OLDEST = (7, 0, 0)
"""pvpanic-pci, -action, JSON for -object, and device state without RAM, all in one release that is tested."""
_READ_ONLY_IMAGES = (8, 2, 0)
_STATE_BY_PATH = (9, 1, 0)

Accelerator = Literal["kvm", "tcg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A QEMU that can run machines."""

    binary: Path
    version: tuple[int, int, int]
    machine_type: str
    """The versioned type behind ``q35``, as in ``pc-q35-7.2``."""
    accelerator: Accelerator

    @property
    def cpu_model(self) -> str:
        """The CPU that guests see: the host's own, or all that the emulation has."""
        return "host" if self.accelerator == "kvm" else "max"

    @property
    def maps_read_only_images(self) -> bool:
        """Whether a RAM image can be mapped copy-on-write from a file opened read-only (``rom=off``)."""
        return self.version >= _READ_ONLY_IMAGES

    @property
    def loads_state_by_path(self) -> bool:
        """Whether device state is named by its path; before, a descriptor is the way, which is deprecated now."""
        return self.version >= _STATE_BY_PATH

    def target(self, version: str | None = None) -> RestoreTarget:
        """The side that continues snapshots. A CPU that is emulated has nothing of the host's."""
        cpu = host_cpu() if self.accelerator == "kvm" else HostCpu(vendor="", model="", flags=frozenset())
        return RestoreTarget(
            runtime="qemu",
            version=version or ".".join(map(str, self.version)),
            machine_type=board_name(self.machine_type),
            accelerator=self.accelerator,
            cpu_model=self.cpu_model,
            cpu_vendor=cpu.vendor,
            cpu_flags=sorted(cpu.flags),
        )


def report(found: Installation) -> RuntimeReport:
    """What a QEMU that was found can do on this host, and what it can't."""
    limitations = []
    if found.accelerator == "tcg":
        limitations.append(kvm_limitation(host_cpu()))
    if not found.maps_read_only_images:
        limitations.append(
            Limitation(
                code="image.opened_writable",
                detail="QEMU before 8.2 opens a RAM image for writing, although it maps it privately",
                remedy="Install QEMU 8.2 or later to have images opened read-only.",
            )
        )
    return RuntimeReport(
        name="qemu",
        usable=True,
        usable_if_named=True,
        binary=found.binary,
        target=found.target(),
        features=frozenset({"ivshmem", "restore", "snapshot", "snapshot-in-place"}),
        limitations=tuple(limitations),
    )


def report_missing(error: MissingTool) -> RuntimeReport:
    """The report where :func:`find` raised."""
    missing = Limitation(code="binary.missing", detail=error.detail, remedy=error.remedy)
    return RuntimeReport(name="qemu", usable=False, binary=None, target=None, limitations=(missing,))


def find(configured: Path | None) -> Installation:
    """The QEMU to use. Blocks. Raises MissingTool for one that is not there, too old, or does not answer."""
    binary = shutil.which(configured or BINARY)
    if binary is None:
        where = f"{configured} is not an executable program" if configured else f"there is no {BINARY} in PATH"
        raise MissingTool(where, remedy=f"Install it ({_INSTALL}), or name its binary in the configuration.")
    answer = _ask(binary, "--version")
    match = _VERSION.match(answer)
    if match is None:
        raise MissingTool(f"{binary} --version answers {answer.strip()[:80]!r}", remedy=f"Reinstall it: {_INSTALL}.")
    version = (int(match[1]), int(match[2]), int(match[3]))
    if version < _OLDEST:
        raise MissingTool(
            f"{binary} is QEMU {'.'.join(map(str, version))}",
            remedy=f"Install QEMU {'.'.join(map(str, _OLDEST[:2]))} or later.",
        )
    machine_type = _MACHINE_TYPE.search(_ask(binary, "-machine", "help"))
    if machine_type is None:
        raise MissingTool(f"{binary} has no machine type q35", remedy=f"Install a complete QEMU: {_INSTALL}.")
    accelerator: Accelerator = "kvm" if host_cpu().has_hardware_virtualisation and _kvm_opens() else "tcg"
    return Installation(binary=Path(binary), version=version, machine_type=machine_type[1], accelerator=accelerator)


def kvm_limitation(cpu: HostCpu) -> Limitation:
    """Why guests get an emulated CPU here."""
    if not cpu.has_hardware_virtualisation:
        why = "the CPU shows neither vmx nor svm"
        remedy = "Enable (nested) virtualisation for this host."
    elif not _KVM.exists():
        why, remedy = f"there is no {_KVM}", "Load the kvm module, or give this machine or container the device."
    else:
        why, remedy = f"{_KVM} can't be opened", "Let this user read and write it, usually by membership in group kvm."
    return Limitation(code="kvm.unusable", detail=f"guest CPUs are emulated (slow): {why}", remedy=remedy)


def _kvm_opens() -> bool:
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _ask(binary: str, *options: str) -> str:
    """The standard output of the binary with some options; empty if it does not give one."""
    try:
        done = subprocess.run(
            [binary, *options], capture_output=True, env=clean_environment(), timeout=_ANSWER_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
