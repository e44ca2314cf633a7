"""The runtimes there are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmm.cloud_hypervisor import CloudHypervisor
from vmm.driver import Driver, RuntimeName
from vmm.qemu import Qemu
from vmm.sandbox.launching import Launcher


def drivers(binaries: Mapping[str, Path | None], launcher: Launcher | None = None) -> dict[RuntimeName, Driver]:
    """A driver for each runtime, with the binary that is configured for it; None or absent: the one in PATH.

    ``launcher`` makes the processes that are to be confined.

    In the order of preference: the first that is usable is chosen where nobody names one.
    """
    return {
        "cloud-hypervisor": CloudHypervisor(binaries.get("cloud-hypervisor"), launcher),
        "qemu": Qemu(binaries.get("qemu"), launcher),
    }
