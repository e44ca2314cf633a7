"""Bodies of the runtime contract (RFC §4) and of what we add to it.

The normative text is api/ovms-runtime.openapi.yaml.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from spec.instance import InstanceInfo

INSTANCE_NAME = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
MAX_INJECT_BYTES = 2 << 20
"""Of one ``POST /inject``, written and read together: base64 and JSON of that take 5 ms, and a loop has no more."""

MAX_PARKED = 100_000
"""Of one artifact; what the host can bear is less."""

InstanceId = Annotated[str, Meta(min_length=1, max_length=64)]
"""An id, a unique prefix of at least 4 characters, or a name."""


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


RuntimeWish = Literal["generic", "qemu", "cloud-hypervisor"]


class Overrides(_Request, frozen=True, kw_only=True, omit_defaults=True):
    """What a caller may change of an artifact for one start."""

    runtime: RuntimeWish | None = None
    memory: int | str | None = None
    """Bytes, or a size such as ``512M``. Refused on restore."""
    cpus: Annotated[int, Meta(ge=1, le=255)] | None = None
    """Refused on restore."""
    kernel_args: Annotated[str, Meta(max_length=4096)] | None = None
    """Replaces the manifest's kernel args. Refused on restore."""
    name: Annotated[str, Meta(pattern=INSTANCE_NAME)] | None = None
    disk: Literal["ephemeral", "persistent"] | None = None
    """``ephemeral`` (default): the overlay goes with the instance. ``persistent``: kept under the instance's name."""
    boot: Literal["auto", "cold", "restore-or-cold"] | None = None
    """``auto``: restore if the artifact has a RAM snapshot, an error if that is not possible here."""


PullPolicy = Literal["missing", "always", "never"]
"""When to ask the registry: if the store has no such artifact; each time; not at all."""


class StartRequest(_Request, frozen=True, kw_only=True):
    """``POST /start``."""

    manifest: Annotated[str, Meta(min_length=1, max_length=4096)]
    overrides: Overrides = Overrides()
    pull: PullPolicy = "missing"
    """Of a reference with a registry; others are never pulled."""


class StartReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``instance_id`` and ``status``; with ``?wait=running`` also the info."""

    instance_id: str
    status: str
    info: InstanceInfo | None = None


class InstanceRequest(_Request, frozen=True, kw_only=True):
    """``POST /pause``, ``/resume``."""

    instance_id: InstanceId


class StopRequest(_Request, frozen=True, kw_only=True):
    """``POST /stop``; after ``timeout_s`` of asking the guest to power off the VMM is ended."""

    instance_id: InstanceId
    timeout_s: Annotated[float, Meta(ge=0, le=3600)] | None = None


class StatusReply(msgspec.Struct, frozen=True, kw_only=True):
    """``{"status": …}``."""

    status: str


class PullRequest(_Request, frozen=True, kw_only=True):
    """``POST /pull``; without ``wait`` the reply comes at once, and the rest on ``GET /events``."""

    reference: Annotated[str, Meta(min_length=1, max_length=512)]
    policy: Literal["missing", "always"] = "always"
    wait: bool = True
    resident: bool = False
    """Make its RAM image resident, too, if it has one: decoded while it arrives."""
    verify: bool | None = None
    """Ask the policy before blobs are fetched; by default as configured. A start asks it in any case."""


class PullReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The artifact that is in the store now, and what that took; only the first two while it is being pulled."""

    reference: str
    status: Literal["pulling", "pulled"]
    digest: str | None = None
    """Of the OCI manifest."""
    index: str | None = None
    """Of the OCI index that the reference names, if it names one."""
    network_bytes: int | None = None
    """What came over the network."""
    resumed_bytes: int | None = None
    """What an earlier, unfinished pull had brought."""
    there_bytes: int | None = None
    """What was in the store."""
    total_ms: float | None = None
    mb_per_s: float | None = None
    resident_ms: float | None = None
    """Until the RAM image was resident, if that was asked for and there is one."""
    resident_bytes: int | None = None


class PushRequest(_Request, frozen=True, kw_only=True):
    """``POST /push``; without ``wait`` the reply comes at once, and the rest on ``GET /events``."""

    reference: Annotated[str, Meta(min_length=1, max_length=512)]
    source: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    """A reference or digest of the local store; else the artifact that has the name ``reference`` there."""
    wait: bool = True


class PushReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The artifact that is in the registry now, and what that took; only the first two while it is being pushed."""

    reference: str
    status: Literal["pushing", "pushed"]
    digest: str | None = None
    """Of the OCI manifest."""
    subject: Literal["there", "pushed", "absent"] | None = None
    """Of what it was made from: it was there, it was pushed with it, the registry does not have it."""
    signatures: int | None = None
    """How many manifests of signatures were attached."""
    sent_bytes: int | None = None
    there_bytes: int | None = None
    """What the repository had."""
    mounted_bytes: int | None = None
    """What the registry took from another of its repositories."""
    total_ms: float | None = None
    mb_per_s: float | None = None


class SnapshotRequest(_Request, frozen=True, kw_only=True):
    """``POST /snapshot``; the tag is a reference, or a bare tag that replaces the one of the instance's artifact."""

    instance_id: InstanceId
    tag: Annotated[str, Meta(min_length=1, max_length=512)]
    push: bool | None = None
    """To the registry that the name has; None: if it is the tag that names one."""


class SnapshotReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The digest of the new artifact, and how long the guest stood still."""

    snapshot_ref: str
    reference: str
    pause_ms: float
    phases: dict[str, float]
    pushed: PushReply | None = None


class MmioWrite(_Request, frozen=True, kw_only=True):
    """Bytes for (or from) an ivshmem device. Exactly one of ``data`` (base64), ``text`` and ``read`` (a length)."""

    device: Annotated[str, Meta(min_length=1, max_length=64)]
    offset: Annotated[int, Meta(ge=0)] = 0
    data: bytes | None = None
    text: str | None = None
    read: Annotated[int, Meta(ge=1, le=MAX_INJECT_BYTES)] | None = None


class InjectContent(_Request, frozen=True, kw_only=True):
    """What to inject; v0.1 knows ``mmio``."""

    mmio: MmioWrite | list[MmioWrite]


class InjectRequest(_Request, frozen=True, kw_only=True):
    """``POST /inject``."""

    instance_id: InstanceId
    content: InjectContent


class InjectReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``{"status": "ok"}``; for each ``read`` the bytes, base64, in order."""

    status: str
    read: list[bytes] = []


class InstanceList(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /instances``, oldest first."""

    instances: list[InstanceInfo]


class WarmRequest(_Request, frozen=True, kw_only=True):
    """``POST /warm``: keep clones of an artifact parked; a count of 0 dissolves its pool."""

    manifest: Annotated[str, Meta(min_length=1, max_length=4096)]
    count: Annotated[int, Meta(ge=0, le=MAX_PARKED)]
    """At first, and for as long as ``min`` and ``max`` say nothing else."""
    min: Annotated[int, Meta(ge=0, le=MAX_PARKED)] | None = None
    """Without demand."""
    max: Annotated[int, Meta(ge=0, le=MAX_PARKED)] | None = None
    """Under demand."""
    runtime: RuntimeWish | None = None
    """As in the overrides of a start."""


class WarmPool(msgspec.Struct, frozen=True, kw_only=True):
    """The parked clones of an artifact: how many were ordered, how many there are, how they served since the order."""

    manifest: str
    digest: str | None
    """The artifact that the reference means; null while it means none that can be restored here."""
    count: int
    min: int
    max: int
    runtime: str | None
    """The one that was asked for."""
    wanted: int
    """Between min and max, by demand."""
    parked: int
    parking: int
    """Being restored."""
    hits: int
    misses: int
    trouble: str | None
    """Why there are fewer than wanted, if something is wrong."""


class WarmList(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /warm``."""

    pools: list[WarmPool]


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A RAM image that is resident in tmpfs; ``references`` are the local names of artifacts with that snapshot."""

    digest: str
    references: list[str]
    size_bytes: int
    locked_bytes: int
    users: int


class ImageList(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /images``, the least recently used first."""

    images: list[ImageInfo]


class PruneRequest(_Request, frozen=True, kw_only=True):
    """``POST /prune``; ``all``: also what could be fetched or made again."""

    all: bool = False
    dry_run: bool = False


class PrunedItem(msgspec.Struct, frozen=True, kw_only=True):
    """A blob (its digest), ``disks/<chain id>``, ``partial/<hex>`` or ``images/<digest>``, and what it took."""

    what: str
    size_bytes: int


class PruneReply(msgspec.Struct, frozen=True, kw_only=True):
    """What went, or with ``dry_run`` would go."""

    dry_run: bool
    removed: list[PrunedItem]
    freed_bytes: int


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of ``GET /events``. ``type`` is ``instance.<state>``, ``snapshot.created``, ``instance.removed``, …"""

    seq: int
    ts: str
    type: str
    instance_id: str | None = None
    name: str | None = None
    cause: str | None = None
    detail: dict[str, Any] = {}


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A WebSocket frame of ``GET /logs/{id}``: a console line without its end.

    ``line`` is text; bytes that are not UTF-8 are given as ``data`` (base64) beside the replaced text.
    ``partial``: the line was longer than 16 KiB and goes on in the next one.
    """

    seq: int
    ts: str
    line: str
    stream: str = "console"
    partial: bool = False
    data: bytes | None = None


class LogGap(msgspec.Struct, frozen=True, kw_only=True):
    """A WebSocket frame: ``lost`` lines from ``seq`` on were not sent to this client, with the reason."""

    seq: int
    lost: int
    reason: str


class LogEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The last WebSocket frame: the instance has ended in this state."""

    end: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``application/problem+json`` (RFC 9457) with our stable ``code`` and a ``remedy``."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    remedy: str = ""
    instance: str | None = None
    fields: dict[str, Any] = {}


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /version``."""

    version: str
    spec: str
    python: str


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /readyz``: ``ready``, or why not."""

    ready: bool
    reasons: list[str]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /healthz``: ``ok``, and the worst delay of the event loop in the last ten seconds."""

    status: str
    loop_lag_ms: float
