"""The moment at which an instance comes to be: admitted, with a record on disk, before anything is made for it."""

from __future__ import annotations

import shutil
import uuid
from contextlib import AsyncExitStack, suppress
from functools import partial

from anyio.to_thread import run_sync

from cache.host_errors import host_errors
from ovms_supervisor.clock import Stopwatch, utc_now
from ovms_supervisor.instance.admission import admit
from ovms_supervisor.instance.claims import claim, disclaim
from ovms_supervisor.instance.clone_memory import Seat
from ovms_supervisor.instance.holdings import hold_reservation, hold_seat
from ovms_supervisor.instance.host import Host
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.owned import undone_on_failure
from ovms_supervisor.instance.plan import Plan
from ovms_supervisor.instance.process_identity import boot_id
from ovms_supervisor.instance.record import Record
from ovms_supervisor.instance.resolution import resolve
from ovms_supervisor.layout import InstancePaths
from spec.api import StartRequest
from spec.digest import Digest, parse_digest
from spec.fault_points import reach
from spec.instance import DeviceInfo, ManifestInfo


async def create(
    host: Host, request: StartRequest, watch: Stopwatch, *, pool: str | None = None
) -> tuple[Instance, Plan, AsyncExitStack]:
    """Resolve, admit, and write down a new instance; returns also the promises that its life must keep.

    With ``pool`` it is one that nobody has asked for yet: a parked clone of the pool of that reference.
    What it raises is the caller's; then no instance has ever existed.
    """
    async with undone_on_failure() as held:
        instance_id = str(uuid.uuid4())
        paths = host.layout.of_instance(instance_id)
        async with undone_on_failure() as undo:
            with watch.phase("resolve"):
                undo.push_async_callback(run_sync, forget, host, paths)
                resolved = await resolve(host, request, partial(_begin, host, paths))
            with watch.phase("admit"):
                plan = await admit(host, resolved, watch)
                hold_reservation(host, held, await host.capacity.reserve(_own_bytes(plan), paths.memory))
                seat = _seat(host, plan, parked=pool is not None)
                if seat is not None:
                    undo.callback(host.capacity.clones.leave, seat)
            instance = Instance(host, _record(instance_id, plan, pool))
            await instance.journal.write(instance.record)
            reach("start.journal")
            if seat is not None:
                hold_seat(instance, held, seat)
        return instance, plan, held


def forget(host: Host, paths: InstancePaths) -> None:
    """Remove an instance's directory, and with it its claim to its artifacts (blocks).

    Raises HostLimit, PermissionMissing: what is left would be an instance again for the next daemon.
    """
    with host_errors(paths.directory), suppress(FileNotFoundError):
        shutil.rmtree(paths.directory)
    reach("remove.directory")
    disclaim(host.store, paths)
    reach("remove.claim")


def _begin(host: Host, paths: InstancePaths, digest: Digest) -> None:
    """Keep the artifact before anything is looked for in it, whatever becomes of its names."""
    paths.directory.mkdir(mode=0o700, parents=True)
    claim(host.store, paths, [digest])
    reach("start.directory")
    host.store.note_use(digest)


def _seat(host: Host, plan: Plan, *, parked: bool) -> Seat | None:
    """The place of a clone in the count of memory. Raises CapacityExceeded."""
    if plan.ramsnap is None:
        return None
    capacity = host.capacity
    return capacity.clones.admit(plan.ramsnap.content_digest, promised_bytes=capacity.unfilled_bytes, parked=parked)


def _own_bytes(plan: Plan) -> int:
    """What the instance may come to fill on the tmpfs: RAM unless it maps an image, and its devices."""
    return (0 if plan.ramsnap else plan.memory_bytes) + sum(device.size_bytes for device in plan.devices)


def _record(instance_id: str, plan: Plan, pool: str | None) -> Record:
    digest = plan.artifact.digest
    snapshot = plan.artifact.manifest.ram_snapshot
    return Record(
        instance_id=instance_id,
        boot_id=boot_id(),
        request=plan.request,
        name=plan.request.overrides.name,
        manifest=ManifestInfo(ref=pool or plan.request.manifest, digest=digest),
        lineage=parse_digest(digest),
        boot=plan.boot,
        runtime=plan.runtime,
        memory_bytes=plan.memory_bytes,
        cpus=plan.cpus,
        devices=[DeviceInfo(type="ivshmem", name=each.name, size_bytes=each.size_bytes) for each in plan.devices],
        created_at=utc_now(),
        degraded=list(plan.degraded),
        pool=pool,
        trust=plan.trust,
        mlock_required=snapshot.mlock_required if snapshot else False,
    )
