"""The runtimes there are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmm.cloud_hypervisor import CloudHypervisor
from vmm.driver import Driver, RuntimeName
from vmm.qemu import Qemu


def drivers(binaries: Mapping[str, Path | None]) -> dict[RuntimeName, Driver]:
    """A driver for each runtime, with the binary that is configured for it; None or absent: the one in PATH.

    In the order of preference: the first that is usable is chosen where nobody names one.
    """
    return {
        "cloud-hypervisor": CloudHypervisor(binaries.get("cloud-hypervisor")),
        "qemu": Qemu(binaries.get("qemu")),
    }
