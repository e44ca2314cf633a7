"""The policy's word on what is about to run: asked for every start, about the digest that is used, under its name."""

from __future__ import annotations

from typing import Final

import structlog
from anyio.to_thread import run_sync

from ovms_supervisor.instance.host import Host
from spec.api import StartRequest
from spec.digest import Digest
from spec.errors import InvalidPolicy, PolicyRejected
from spec.instance import TrustInfo
from spec.reference import parse_source

_NO_POLICY: Final = TrustInfo(policy=None, checks=[])

_log = structlog.get_logger(__name__)


async def check_trust(host: Host, request: StartRequest, digest: Digest, *, ram_snapshot: bool) -> TrustInfo:
    """Why the artifact may start. Raises PolicyRejected, InvalidPolicy, CorruptStore.

    ``ram_snapshot``: whether it may go on from its RAM. A parked clone is asked about when it is parked, and again when
    it is claimed: in between, policy, keys and signatures may have changed, and the name is another.
    """
    if host.gate.policy.is_absent():  # the look at one inode
        return _NO_POLICY
    try:
        info = await run_sync(_ask, host, request, digest, ram_snapshot)
    except (PolicyRejected, InvalidPolicy) as error:
        host.events.publish("policy.rejected", reference=request.manifest, digest=digest, cause=error.detail)
        _log.warning("not admitted", artifact=request.manifest, digest=digest, code=error.code, why=error.detail)
        raise
    by = sorted({check.by for check in info.checks})
    keys = sorted({check.key for check in info.checks if check.key})
    _log.info("admitted", artifact=request.manifest, digest=digest, by=by, keys=keys)
    return info


def _ask(host: Host, request: StartRequest, digest: Digest, ram_snapshot: bool) -> TrustInfo:
    decision = host.gate.decide(digest, parse_source(request.manifest), ram_snapshot=ram_snapshot)
    return decision.require(request.manifest)
