"""``POST /pull``: an artifact from a registry into the store, ahead of a start."""

from __future__ import annotations

from aiohttp import web

from ovms_supervisor.api.context import CONTEXT, reply
from ovms_supervisor.api.requests import Query, read_body, remote_reference
from ovms_supervisor.pulling import reply_of
from spec.api import PullReply, PullRequest

routes = web.RouteTableDef()


@routes.post("/pull")
async def pull(request: web.Request) -> web.Response:
    """Bring an artifact into the store. It goes on whether or not the client waits for it."""
    context = request.app[CONTEXT]
    Query(request)
    body = await read_body(request, PullRequest)
    reference = remote_reference(body.reference)
    change = context.supervisor.pull(reference, body.policy, resident=body.resident, verify=body.verify)
    if not body.wait:
        context.operations.begin(change, resumable=True)
        return reply(PullReply(reference=str(reference), status="pulling"), status=202)
    return reply(reply_of(await context.operations.run(change, resumable=True)))
