"""What the journal of an instance holds: everything that a later daemon needs to take it over.

The file is JSON with a ``version``. A daemon reads the journals of older ones: new fields have defaults, and what no
longer fits raises the version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from spec.api import StartRequest
from spec.decoding import NotDecodable, from_json
from spec.errors import CorruptStore
from spec.instance import (
    Degradation,
    DeviceInfo,
    ExitInfo,
    InstanceState,
    IsolationLayer,
    ManifestInfo,
    RuntimeInfo,
    StartMetrics,
    TrustInfo,
)
from vmm.driver import Machine

VERSION = 1

Boot = Literal["cold", "restore"]


class VmRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The VMM process that runs the instance, so that it can be told from any other and be attached to."""

    pid: int
    start_ticks: int
    generation: int
    machine: Machine


class Doing(msgspec.Struct, frozen=True, kw_only=True):
    """Written before something that, half done, leaves the machine other than its state says."""

    what: Literal["pause", "resume", "snapshot", "claim"]
    overlay: Path | None = None
    """The overlay that a snapshot switches to."""
    successor: VmRecord | None = None
    """The process that continues the machine from its snapshot, and may run already."""


class Record(msgspec.Struct, kw_only=True):
    """One instance as it is written to its journal; mutable, owned by its Instance."""

    version: int = VERSION
    instance_id: str
    boot_id: str
    request: StartRequest
    name: str | None
    manifest: ManifestInfo
    lineage: str
    """Digest of the OCI manifest that has all disk layers below ``pending_layers``: the base of the next snapshot."""
    boot: Boot
    runtime: RuntimeInfo
    memory_bytes: int
    cpus: int
    devices: list[DeviceInfo]
    created_at: str
    state: InstanceState = InstanceState.STARTING
    started_at: str | None = None
    stopped_at: str | None = None
    exit: ExitInfo | None = None
    degraded: list[Degradation] = []
    isolation: list[IsolationLayer] = []
    start: StartMetrics | None = None
    image: str | None = None
    """Digest of the RAM snapshot whose resident image is mapped."""
    mlock_required: bool = False
    pending_layers: list[Path] = []
    """Overlays that snapshots have frozen but could not store, lowest first."""
    generation: int = 0
    """The last one that was begun, also by a snapshot that was given up: its file names are not used again."""
    pool: str | None = None
    """The reference whose pool of parked clones it belongs to; None once it is somebody's machine."""
    trust: TrustInfo | None = None
    vm: VmRecord | None = None
    doing: Doing | None = None


def encode(record: Record) -> bytes:
    """The bytes of journal.json."""
    return msgspec.json.format(msgspec.json.encode(record, enc_hook=_plain), indent=1)


def decode(data: bytes) -> Record:
    """Read a journal. Raises CorruptStore for what is none, or one of a newer daemon."""
    try:
        version = from_json(data, _Version).version
        if version != VERSION:
            raise CorruptStore(f"the journal has version {version}, this daemon knows {VERSION}")
        return from_json(data, Record, dec_hook=_rich)
    except NotDecodable as error:
        raise CorruptStore(f"the journal cannot be read: {error}") from error


class _Version(msgspec.Struct):
    version: int


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _rich(kind: type, value: Any) -> Any:
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected {kind.__name__.lower()}, got {type(value).__name__}")  # becomes NotDecodable
