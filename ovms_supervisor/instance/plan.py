"""What is to be started: the request and the artifact, with every decision made."""

from __future__ import annotations

from dataclasses import dataclass, field

from cache.artifact import Artifact
from ovms_supervisor.clock import Stopwatch
from ovms_supervisor.instance.record import Boot
from spec.api import StartRequest
from spec.instance import Degradation, RuntimeInfo, TrustInfo
from spec.oci import Descriptor


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request whose artifact is known: verified and decoded."""

    request: StartRequest
    artifact: Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An ivshmem device."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An admitted start. Made by :func:`ovms_supervisor.instance.admission.admit`."""

    request: StartRequest
    artifact: Artifact
    watch: Stopwatch
    runtime: RuntimeInfo
    boot: Boot
    memory_bytes: int
    cpus: int
    kernel_args: str
    devices: tuple[Device, ...]
    persistent_disk: bool
    trust: TrustInfo
    ramsnap: Descriptor | None
    """The RAM snapshot to continue from; None exactly for a cold boot."""
    degraded: list[Degradation] = field(default_factory=list)
    not_claimed: str | None = None
    """Why no parked clone could serve, if its artifact has some."""
