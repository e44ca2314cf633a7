"""Clones by hand of any runtime."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from scripts.benchmarks.host import Host
from scripts.benchmarks.straight.cloud_hypervisor import CloudHypervisorClones
from scripts.benchmarks.straight.machine import Straight
from scripts.benchmarks.straight.qemu import QemuClones


class Clones(Protocol):
    """Makes clones by hand."""

    def clone(self) -> Straight:
        """The next one; nothing is done for it yet."""


def clones_by_hand(host: Host, runtime: str, artifact: str) -> Clones:
    """After the pattern of a clone that the daemon starts for it, and removes again."""
    pattern = host.start(artifact, runtime=runtime)
    try:
        directory = host.directory_of(pattern)
        if runtime == "qemu":
            return QemuClones(host.status(pattern)["pid"], directory, host.daemon.home)
        return CloudHypervisorClones(directory, host.daemon.home)
    finally:
        with suppress(Exception):
            host.remove(pattern)
