"""The life of an instance as a table, and what its status tells (RFC §4 InstanceInfo)."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec


class InstanceState(StrEnum):
    """The states of an instance; ``stopped`` and ``failed`` are final.

    ``parked``: restored and standing still, a machine that nobody has asked for yet; a start that it fits claims it.
    """

    STARTING = "starting"
    PARKED = "parked"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


_TRANSITIONS: dict[InstanceState, frozenset[InstanceState]] = {
    InstanceState.STARTING: frozenset(
        {InstanceState.PARKED, InstanceState.RUNNING, InstanceState.STOPPING, InstanceState.FAILED}
    ),
    InstanceState.PARKED: frozenset(
        {InstanceState.RUNNING, InstanceState.STOPPING, InstanceState.STOPPED, InstanceState.FAILED}
    ),
    InstanceState.RUNNING: frozenset(
        {InstanceState.PAUSED, InstanceState.STOPPING, InstanceState.STOPPED, InstanceState.FAILED}
    ),
    InstanceState.PAUSED: frozenset(
        {InstanceState.RUNNING, InstanceState.STOPPING, InstanceState.STOPPED, InstanceState.FAILED}
    ),
    InstanceState.STOPPING: frozenset({InstanceState.STOPPED, InstanceState.FAILED}),
    InstanceState.STOPPED: frozenset(),
    InstanceState.FAILED: frozenset(),
}
"""``running → stopped`` without ``stopping``: the guest powered itself off."""


def may_become(old: InstanceState, new: InstanceState) -> bool:
    """Whether the table has an arrow from old to new."""
    return new in _TRANSITIONS[old]


def is_final(state: InstanceState) -> bool:
    """Whether no arrow leaves the state."""
    return not _TRANSITIONS[state]


def is_live(state: InstanceState) -> bool:
    """Whether the instance has, or is about to have, a VMM."""
    return not is_final(state)


class RuntimeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The VMM that runs the instance, and why it was chosen."""

    name: str
    version: str
    accelerator: str
    reason: str


class ManifestInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was started: the reference as given and the digest of the OCI manifest it was resolved to."""

    ref: str
    digest: str


class ExitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How the VMM ended. ``reason`` is a sentence; ``last_console`` the last lines, decoded with replacement."""

    code: int | None = None
    signal: int | None = None
    reason: str
    last_console: list[str] = []


class Degradation(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was asked for and is not so, with a stable code."""

    code: str
    detail: str


StartPath = Literal["booted", "restored", "claimed"]
"""Claimed: it was there before it was asked for, restored and paused, and only had to go on."""


class IsolationLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of a VMM's confinement, as read back from the kernel."""

    name: str
    holds: bool
    detail: str


class StartMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """How long the start took, from the request to ``running``, and each phase; milliseconds by the monotonic clock."""

    total_ms: float
    phases: dict[str, float]
    path: StartPath | None = None
    """How it came to run; None for what an older daemon started."""
    not_claimed: str | None = None
    """Why it could not have a parked clone, where its artifact has a pool of them."""


class MemoryMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Guest memory as the kernel counts it at the time of the call, in bytes.

    ``total`` is what the guest has; ``shared`` are resident pages of the image that other clones share;
    ``private`` are pages of the VMM process that only this instance has; ``locked`` are image pages held by mlock.
    """

    total_bytes: int
    shared_bytes: int
    private_bytes: int
    locked_bytes: int


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of an instance; a part that does not apply in its state is null."""

    start: StartMetrics | None = None
    memory: MemoryMetrics | None = None


class DeviceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A device of the instance that ``/inject`` can name."""

    type: str
    name: str
    size_bytes: int


class TrustCheck(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rule of the policy, and what satisfied it."""

    what: Literal["artifact", "ramSnapshot"]
    scope: str
    by: Literal["accept", "signedBy", "madeHere"]
    key: str | None = None
    """The key file that matched."""
    fingerprint: str | None = None
    signature: Literal["v2", "v3"] | None = None
    """The format of the signature."""


class TrustInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Why an artifact was admitted to start; ``policy`` is null if there was no policy to ask."""

    policy: str | None
    checks: list[TrustCheck]


class InstanceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The reply of ``GET /status/{id}``. Times are RFC 3339 in UTC."""

    instance_id: str
    name: str | None
    status: InstanceState
    manifest: ManifestInfo
    boot: str
    """``cold`` or ``restore``."""
    runtime: RuntimeInfo | None
    pid: int | None
    memory_bytes: int
    cpus: int
    devices: list[DeviceInfo]
    created_at: str
    started_at: str | None
    stopped_at: str | None
    exit: ExitInfo | None
    degraded: list[Degradation]
    metrics: Metrics
    trust: TrustInfo | None = None
    """Null for a machine that an older daemon started."""
    isolation: list[IsolationLayer] = []
    """Empty where VMMs are not confined."""
