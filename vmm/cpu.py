"""The host's CPU as ``/proc/cpuinfo`` describes it: what a snapshot's guest may have come to rely on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

_VIRTUALISATION_FLAGS = frozenset({"vmx", "svm"})


@dataclass(frozen=True, slots=True)
class HostCpu:
    """One CPU of the host; all are taken to be alike."""

    vendor: str
    """``GenuineIntel``, ``AuthenticAMD``, …; empty when unknown."""
    model: str
    flags: frozenset[str]

    @property
    def has_hardware_virtualisation(self) -> bool:
        """Whether KVM runs guests on the CPU itself.

        The flags say so and ``/dev/kvm`` does not: the device also opens where KVM shares page tables with an outer
        hypervisor, and interprets much of what a guest kernel does.
        """
        return bool(self.flags & _VIRTUALISATION_FLAGS)


def parse_cpuinfo(text: str) -> HostCpu:
    """The first processor of a ``/proc/cpuinfo`` of x86."""
    first = text.partition("\n\n")[0]
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return HostCpu(
        vendor=fields.get("vendor_id", ""),
        model=fields.get("model name", ""),
        flags=frozenset(fields.get("flags", "").split()),
    )


@cache
def host_cpu() -> HostCpu:
    """The CPU of this host, read once."""
    return parse_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
