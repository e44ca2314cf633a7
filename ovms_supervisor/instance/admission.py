"""Whether an artifact may start here, and how: runtime, cold boot or restore, sizes. Nothing is made yet."""

from __future__ import annotations

from anyio import to_thread

from cache.artifact import Artifact
from cache.ramsnap import read_header
from ovms_supervisor.clock import Stopwatch
from ovms_supervisor.config import Settings
from ovms_supervisor.instance.host import Host
from ovms_supervisor.instance.plan import Device, Plan, Resolved
from ovms_supervisor.instance.runtimes import Choice, choose, choose_for_restore
from ovms_supervisor.instance.trust import check_trust
from spec.api import Overrides
from spec.compatibility import Compatibility
from spec.errors import (
    ImmutableOverride,
    IncompatibleSnapshot,
    InvalidManifest,
    InvalidRequest,
    NoUsableRuntime,
)
from spec.instance import Degradation, TrustInfo
from spec.manifest import MAX_MEMORY_BYTES
from spec.oci import Descriptor
from spec.ramsnap import RamsnapHeader
from spec.sizes import MIB, PAGE_BYTES, format_size, parse_size

_MIN_MEMORY_BYTES = MIB
_SHARED_DEVICES = frozenset({"ivshmem"})


async def admit(host: Host, resolved: Resolved, watch: Stopwatch) -> Plan:
    """Decide how the artifact starts.

    Raises UnsupportedManifest, InvalidManifest, InvalidRequest, NoUsableRuntime, IncompatibleSnapshot,
    ImmutableOverride, BlobNotFound, CorruptRamsnap, PolicyRejected, InvalidPolicy.
    """
    artifact, overrides = resolved.artifact, resolved.request.overrides
    _check_disk(overrides, artifact)
    may_restore = artifact.manifest.ram_snapshot is not None and overrides.boot != "cold"
    trust = await check_trust(host, resolved.request, artifact.digest, ram_snapshot=may_restore)
    header = await _header(host, artifact) if may_restore else None
    try:
        return await _decide(host, resolved, header, watch, trust, afresh=False)
    except (NoUsableRuntime, IncompatibleSnapshot):
        # Perhaps somebody has just installed what was missing.
        return await _decide(host, resolved, header, watch, trust, afresh=True)


async def _decide(
    host: Host,
    resolved: Resolved,
    header: RamsnapHeader | None,
    watch: Stopwatch,
    trust: TrustInfo,
    *,
    afresh: bool,
) -> Plan:
    artifact, overrides = resolved.artifact, resolved.request.overrides
    manifest = artifact.manifest
    reports = await host.runtimes.reports(afresh=afresh)
    features = _SHARED_DEVICES if manifest.devices else frozenset[str]()
    degraded: list[Degradation] = []
    choice: Choice | None = None
    recorded: Compatibility | None = None
    ramsnap: Descriptor | None = None
    if header is not None:
        ramsnap = artifact.ramsnap
        try:
            _check_parents(artifact, header.parent)
            recorded = header.compatibility
            choice = choose_for_restore(reports, recorded, asked=overrides.runtime, features=features)
        except IncompatibleSnapshot as error:
            if overrides.boot != "restore-or-cold":
                raise
            degraded.append(Degradation(code="restore.incompatible", detail=f"booted cold: {error.detail}"))
            ramsnap = recorded = None
    if choice is None:
        choice = choose(
            reports,
            asked=overrides.runtime,
            preferred=manifest.runtime_hints.preferred_runtime,
            features=features,
        )
        if choice.unmet_wish:
            detail = f"the artifact prefers {choice.unmet_wish}; it runs on {choice.report.name}, {choice.reason}"
            degraded.append(Degradation(code="runtime.not_preferred", detail=detail))
    memory_bytes, cpus, kernel_args = _sizes(host.settings, artifact, overrides)
    if recorded is not None:
        _check_unchanged(overrides, artifact, recorded)
        memory_bytes, cpus, kernel_args = recorded.memory_bytes, recorded.cpus, manifest.kernel.args
    return Plan(
        request=resolved.request,
        artifact=artifact,
        watch=watch,
        runtime=choice.info,
        boot="cold" if ramsnap is None else "restore",
        memory_bytes=memory_bytes,
        cpus=cpus,
        kernel_args=kernel_args,
        devices=tuple(Device(name=each.name, size_bytes=each.size or 0) for each in manifest.devices),
        persistent_disk=overrides.disk == "persistent",
        trust=trust,
        ramsnap=ramsnap,
        degraded=degraded,
    )


def _sizes(settings: Settings, artifact: Artifact, overrides: Overrides) -> tuple[int, int, str]:
    """Memory, CPUs and kernel arguments of a cold boot: the caller's, the artifact's, else the configured ones."""
    hints = artifact.manifest.runtime_hints
    if overrides.memory is None:
        memory_bytes = hints.default_memory_bytes or settings.default_memory_bytes
    else:
        memory_bytes = overrides.memory if isinstance(overrides.memory, int) else parse_size(overrides.memory)
    if not _MIN_MEMORY_BYTES <= memory_bytes <= MAX_MEMORY_BYTES or memory_bytes % PAGE_BYTES:
        raise InvalidRequest(
            f"memory of {memory_bytes} bytes: it must be a multiple of {PAGE_BYTES}, at least "
            f"{format_size(_MIN_MEMORY_BYTES)}",
            path="$.overrides.memory",
        )
    cpus = overrides.cpus or hints.default_cpus or settings.default_cpus
    kernel_args = artifact.manifest.kernel.args if overrides.kernel_args is None else overrides.kernel_args
    return memory_bytes, cpus, kernel_args


def _check_unchanged(overrides: Overrides, artifact: Artifact, recorded: Compatibility) -> None:
    """A machine that goes on has the memory, CPUs and kernel that it had; naming the same again is no change."""
    wanted = None
    if overrides.memory is not None:
        wanted = overrides.memory if isinstance(overrides.memory, int) else parse_size(overrides.memory)
    for what, asked, has in (
        ("memory", wanted, recorded.memory_bytes),
        ("cpus", overrides.cpus, recorded.cpus),
        ("kernel_args", overrides.kernel_args, artifact.manifest.kernel.args),
    ):
        if asked is not None and asked != has:
            raise ImmutableOverride(
                f"{what} cannot become {asked!r}: the RAM snapshot has {has!r}",
                path=f"$.overrides.{what}",
                snapshot=has,
                asked=asked,
            )


def _check_disk(overrides: Overrides, artifact: Artifact) -> None:
    if overrides.disk != "persistent":
        return
    if overrides.name is None:
        raise InvalidRequest(
            "a persistent disk is kept under the instance's name, which is missing", path="$.overrides"
        )
    if not artifact.manifest.disk_layers:
        raise InvalidRequest("the artifact has no disk that could be persistent", path="$.overrides.disk")


def _check_parents(artifact: Artifact, parent: str | None) -> None:
    """The blobs that the snapshot is a layer on must be the artifact's own, or a copy of it would not start."""
    parents = artifact.ramsnap_parents
    listed = parents[-1].digest if parents else None
    if listed != parent:
        raise InvalidManifest(
            f"the RAM snapshot is a layer on {parent or 'nothing'}, manifest.json says on {listed or 'nothing'}",
            path="$.ramSnapshot.parents",
        )


async def _header(host: Host, artifact: Artifact) -> RamsnapHeader | None:
    """Of its RAM snapshot, which the policy has let through by now; that of a resident image is in memory."""
    snapshot = artifact.ramsnap
    if snapshot is None:
        return None
    known = host.images.header(snapshot.content_digest)
    if known is not None and known.parent is None and not artifact.ramsnap_parents:
        return known
    return await to_thread.run_sync(read_header, host.store.blob_path(snapshot.content_digest))
