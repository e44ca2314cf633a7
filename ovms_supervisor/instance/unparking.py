"""The claim: a parked clone becomes the machine that a caller asked for, in the time of one resume."""

from __future__ import annotations

import anyio
import msgspec

from ovms_supervisor.clock import Stopwatch, utc_now
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.record import Doing
from spec.api import StartRequest
from spec.fault_points import reach
from spec.instance import InstanceState, ManifestInfo, StartMetrics, TrustInfo


async def unpark(instance: Instance, request: StartRequest, trust: TrustInfo, watch: Stopwatch) -> None:
    """Write down whose it is, then let the vCPUs go on. To be performed by the life of a parked clone.

    One write to the journal, before the resume: a daemon that dies between the two leaves a machine that the next one
    lets go on, never one that is handed out twice. Raises Vmm*, NoSpace, OSError; the clone is not to be used then.
    """
    record, now = instance.record, utc_now()
    claimed = msgspec.structs.replace(
        record,
        pool=None,
        state=InstanceState.RUNNING,
        request=request,
        name=request.overrides.name,
        manifest=ManifestInfo(ref=request.manifest, digest=record.manifest.digest),
        created_at=now,
        started_at=now,
        start=None,
        trust=trust,
        doing=Doing(what="claim"),
    )
    with anyio.CancelScope(shield=True):
        reach("claim.taken")
        with watch.phase("journal"):
            await instance.journal.write(claimed)
        reach("claim.journal")
        with watch.phase("resume"):
            await instance.running_vm().resume()
        reach("claim.resumed")
        claimed.doing = None
        claimed.start = StartMetrics(total_ms=watch.total_ms, phases=watch.phases_ms, path="claimed")
        instance.claimed(claimed)
