"""The settings of one daemon or command, resolved: paths are absolute, sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from ovms_supervisor.config import host
from spec.sizes import MIB

MlockPolicy = Literal["required", "best-effort"]
IsolationMode = Literal["off", "auto", "required"]
OnExit = Literal["leave", "stop"]
EventLoop = Literal["auto", "asyncio", "uvloop"]
LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

DEFAULT_IMAGE_SHARE = 0.5
"""Of the memory of this host: what resident images may take together unless ``image_budget`` says otherwise."""

DEFAULT_WARM_RESERVE_SHARE = 0.05
"""Of the memory of this host: what parked clones leave alone unless ``warm_reserve`` says otherwise."""


def _default_image_budget() -> int:
    return int(host.memory_total_bytes() * DEFAULT_IMAGE_SHARE)


def _default_warm_reserve() -> int:
    return int(host.memory_total_bytes() * DEFAULT_WARM_RESERVE_SHARE)


class KeptWarm(msgspec.Struct, frozen=True, kw_only=True):
    """Clones of an artifact that are kept parked from the start of the daemon on."""

    reference: str
    """As the store lists it."""
    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.reference}={self.least}" + (f"..{self.most}" if self.most != self.least else "")


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    """A TCP address to listen on besides the socket (see ``api.remote``)."""

    address: str
    """``HOST:PORT``."""
    cert: Path | None = None
    """The daemon's certificate chain, PEM."""
    key: Path | None = None
    """Its key, PEM, mode 0600."""
    client_ca: Path | None = None
    """The authorities whose client certificates are accepted, PEM."""
    token_file: Path | None = None
    """A token that is accepted as ``Authorization: Bearer``, mode 0600."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon and the commands go by. Made by :func:`ovms_supervisor.config.load`."""

    root: Path
    """Artifacts, disk overlays and persistent disks: outlives a reboot."""
    run_dir: Path
    """Sockets, journals and consoles of instances."""
    socket: Path
    """The daemon's UNIX socket."""
    image_dir: Path
    """RAM images and the RAM of instances; a tmpfs, or nothing can be shared and locked."""
    socket_group: str | None = None
    """The group that may use the socket (mode 0660); None: only the daemon's own user (0600)."""
    policy: Path | None = None
    """What may start (spec/policy.md); None: ``etc/policy.toml`` below the root if there is one."""
    verify_on_pull: bool = True
    """Whether a pull asks the policy before it fetches blobs; a start asks it in any case."""
    image_budget_bytes: int = msgspec.field(default_factory=_default_image_budget)
    """What resident images may take together."""
    huge_pages: bool = False
    """Whether ``image_dir`` is given a tmpfs of its own that has them, while it is empty; takes root."""
    store_limit_bytes: int = 0
    """What the store may take on disk before what nobody refers to goes, the least recently used first; 0: no limit."""
    clone_budget_bytes: int = msgspec.field(default_factory=host.memory_total_bytes)
    """What clones may have to themselves together; a start is refused before that, and before the host runs short."""
    max_connections: int = 1024
    """Clients of the API at a time; more are told to come back."""
    nice: int = -10
    """Niceness of the daemon's own threads, where it may have it: it answers also while guests keep all processors
    busy. VMMs keep the one that the daemon was started with."""
    max_starts: int = 512
    """Starts under way at a time, those included that wait for their turn; more are told to come back."""
    listen: Listen | None = None
    """None: nothing but the socket."""
    operators: tuple[str, ...] | None = None
    """Who may change things (see ``api.roles``); None: whoever can use the socket and is no reader."""
    readers: tuple[str, ...] = ()
    """Who may only look."""
    mlock: MlockPolicy = "best-effort"
    """An artifact demands locked memory, the kernel refuses: ``required`` is an error, ``best-effort`` is reported as
    ``degraded``."""
    isolation: IsolationMode = "auto"
    """How VMMs are confined: as far as this host can, wholly or not at all, or not."""
    log_limit_bytes: int = 16 * MIB
    """Console output kept per instance; the oldest goes first."""
    stop_grace_s: float = 10.0
    """How long a guest may take to power itself off before its VMM is ended."""
    on_exit: OnExit = "leave"
    """What becomes of running machines when the daemon ends: they go on, or are stopped."""
    event_loop: EventLoop = "auto"
    """What the daemon runs on; ``auto`` is ``uvloop`` where that is installed, else ``asyncio``."""
    log_format: LogFormat = "auto"
    """Of the daemon's own log; ``auto`` is ``console`` on a terminal, else ``json``."""
    log_level: LogLevel = "info"
    warm: tuple[KeptWarm, ...] = ()
    """What callers say of the same artifact goes first."""
    warm_reserve_bytes: int = msgspec.field(default_factory=_default_warm_reserve)
    """Memory that must be available for clones to be parked; below it those that are parked give way."""
    default_memory_bytes: int = 512 * MIB
    """For artifacts that name no memory size."""
    default_cpus: int = 1
    """For artifacts that name no number of CPUs."""
    plain_http: tuple[str, ...] = ()
    """Registries (``name[:port]``) that are spoken to without TLS; those on loopback always are."""
    ca_file: Path | None = None
    """Certificate authorities (PEM) for registries, besides those of the system."""
    binaries: Mapping[str, Path | None] = msgspec.field(
        default_factory=lambda: {"qemu": None, "cloud-hypervisor": None}
    )
    """By runtime: its program, or None to search PATH."""
