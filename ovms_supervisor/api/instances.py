"""The life of instances: start, stop, pause, resume, remove, list, status, snapshot, inject."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ovms_supervisor.api.context import CONTEXT, Context, reply
from ovms_supervisor.api.requests import Query, Wait, read_body
from ovms_supervisor.api.waiting import started_reply, wait_for
from spec.api import (
    MAX_INJECT_BYTES,
    InjectReply,
    InjectRequest,
    InstanceList,
    InstanceRequest,
    MmioWrite,
    SnapshotRequest,
    StartRequest,
    StatusReply,
    StopRequest,
)
from spec.errors import InvalidRequest
from spec.instance import InstanceInfo, InstanceState, is_live

MAX_INJECT_BODY_BYTES = MAX_INJECT_BYTES * 3 // 2
AT_ONCE_BYTES, AT_ONCE_WRITES = 64 << 10, 64
"""Copied to or from tmpfs in the event loop: a visit of a thread takes longer."""

_LISTED_AT_ONCE = 32
"""Infos that are made before others have their turn: some 50 µs each."""

routes = web.RouteTableDef()


@routes.post("/start")
async def start(request: web.Request) -> web.Response:
    """Make an instance. It starts whether or not the client waits for it."""
    context, wait = request.app[CONTEXT], Wait.of(Query(request, "wait", "timeout"), "running")
    body = await read_body(request, StartRequest)
    instance = await context.operations.run(context.supervisor.start(body))
    return await started_reply(context, instance, wait)


@routes.post("/stop")
async def stop(request: web.Request) -> web.Response:
    """End an instance."""
    context, wait = request.app[CONTEXT], Wait.of(Query(request, "wait", "timeout"), "stopped")
    body = await read_body(request, StopRequest)
    instance = context.supervisor.find(body.instance_id)
    await context.operations.run(context.supervisor.stop(instance, body.timeout_s))
    if wait:
        await wait_for(context, instance, wait.timeout_s, InstanceState.STOPPED)
    return reply(StatusReply(status=instance.state))


@routes.post("/pause")
async def pause(request: web.Request) -> web.Response:
    """Let the vCPUs stand still."""
    return await _set_going(request, going=False)


@routes.post("/resume")
async def resume(request: web.Request) -> web.Response:
    """Let the vCPUs go on."""
    return await _set_going(request, going=True)


async def _set_going(request: web.Request, *, going: bool) -> web.Response:
    context: Context = request.app[CONTEXT]
    Query(request)
    body = await read_body(request, InstanceRequest)
    instance = context.supervisor.find(body.instance_id)
    change = context.supervisor.resume if going else context.supervisor.pause
    await context.operations.run(change(instance))
    return reply(StatusReply(status=instance.state))


@routes.post("/snapshot")
async def snapshot(request: web.Request) -> web.Response:
    """Make an artifact of an instance."""
    context = request.app[CONTEXT]
    Query(request)
    body = await read_body(request, SnapshotRequest)
    instance = context.supervisor.find(body.instance_id)
    made = await context.operations.run(context.supervisor.snapshot(instance, body.tag, push=body.push))
    context.metrics.observe_snapshot(made.pause_ms / 1000)
    return reply(made)


@routes.post("/inject")
async def inject(request: web.Request) -> web.Response:
    """Write to and read from shared-memory devices."""
    context = request.app[CONTEXT]
    Query(request)
    body = await read_body(request, InjectRequest, max_bytes=MAX_INJECT_BODY_BYTES)
    mmio = body.content.mmio
    writes = mmio if isinstance(mmio, list) else [mmio]
    size_bytes = _check_writes(writes)
    instance = context.supervisor.find(body.instance_id)
    small = size_bytes <= AT_ONCE_BYTES and len(writes) <= AT_ONCE_WRITES
    read = context.supervisor.inject_at_once(instance, writes) if small else None
    if read is None:
        read = await context.operations.run(context.supervisor.inject(instance, writes))
    return reply(InjectReply(status="ok", read=read))


def _check_writes(writes: list[MmioWrite]) -> int:
    """How many bytes they write and read together."""
    if not writes:
        raise InvalidRequest("content.mmio is an empty list", path="$.content.mmio")
    total = 0
    for i, write in enumerate(writes):
        given = [name for name in ("data", "text", "read") if getattr(write, name) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                f"content.mmio[{i}] has {' and '.join(given) or 'none'} of data, text and read; it takes exactly one",
                path=f"$.content.mmio[{i}]",
            )
        total += len(write.data or b"") + len((write.text or "").encode()) + (write.read or 0)
    if total > MAX_INJECT_BYTES:
        raise InvalidRequest(
            f"{total} bytes in one request; at most {MAX_INJECT_BYTES} can be written and read together",
            remedy="Split it into several requests.",
            path="$.content.mmio",
        )
    return total


@routes.get("/instances")
async def instances(request: web.Request) -> web.Response:
    """All live instances; with ``all=true`` also those that have ended, with ``status=`` those in that state.

    Parked clones are nobody's yet: they come with ``parked=true`` or ``status=parked`` only.
    """
    context, query = request.app[CONTEXT], Query(request, "all", "status", "parked")
    status = query.choice("status", *InstanceState)
    everything = query.flag("all") or status is not None
    parked = query.flag("parked") or status == InstanceState.PARKED
    found = [
        instance
        for instance in context.supervisor.instances()
        if (everything or is_live(instance.state))
        and status in (None, instance.state)
        and (parked or instance.record.pool is None)  # also while it is being parked, or ends
    ]
    infos: list[InstanceInfo] = []
    for instance in found:
        infos.append(await instance.info())
        if not len(infos) % _LISTED_AT_ONCE:
            await asyncio.sleep(0)  # with thousands of them others have their turn in between
    return reply(InstanceList(instances=sorted(infos, key=lambda info: info.created_at)))


@routes.get("/status/{instance_id}")
async def status(request: web.Request) -> web.Response:
    """All about an instance."""
    Query(request)
    instance = request.app[CONTEXT].supervisor.find(request.match_info["instance_id"])
    return reply(await instance.info())


@routes.delete("/instances/{instance_id}")
async def remove(request: web.Request) -> web.Response:
    """Forget an ended instance with its console and overlays; ``force=true`` ends a live one first."""
    context, force = request.app[CONTEXT], Query(request, "force").flag("force")
    instance = context.supervisor.find(request.match_info["instance_id"])
    await context.operations.run(context.supervisor.remove(instance, force=force))
    return web.Response(status=204)
