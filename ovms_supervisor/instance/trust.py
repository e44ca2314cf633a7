"""The policy's word on what is about to run: asked for every start, about the digest that is used, under its name."""

from __future__ import annotations

import structlog

from cache.artifact import Artifact
from ovms_supervisor.instance.host import Host
from spec.api import StartRequest
from spec.errors import InvalidPolicy, PolicyRejected
from spec.instance import TrustInfo
from spec.reference import Reference, parse_source

_log = structlog.get_logger(__name__)


def check_trust(host: Host, request: StartRequest, artifact: Artifact) -> TrustInfo:
    """Why the artifact may start (blocks). Raises PolicyRejected, InvalidPolicy, CorruptStore.

    The rules for RAM snapshots count if the machine may go on from one. A parked clone is asked about when it is parked
    and again when it is claimed: in between, policy, keys and signatures may have changed, and the name is another.
    """
    source = parse_source(request.manifest)
    named = source if isinstance(source, Reference) else None
    uses_ram = artifact.manifest.ram_snapshot is not None and request.overrides.boot != "cold"
    try:
        info = host.gate.decide(artifact.digest, named, ram_snapshot=uses_ram).require(request.manifest)
    except (PolicyRejected, InvalidPolicy) as error:
        _log.warning(
            "not admitted", artifact=request.manifest, digest=artifact.digest, code=error.code, why=error.detail
        )
        raise
    if info.policy is not None:
        keys = sorted({check.key for check in info.checks if check.key})
        by = sorted({check.by for check in info.checks})
        _log.info("admitted", artifact=request.manifest, digest=artifact.digest, by=by, keys=keys)
    return info
