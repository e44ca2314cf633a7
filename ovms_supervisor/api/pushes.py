"""``POST /push``: an artifact of the store to a registry."""

from __future__ import annotations

from aiohttp import web

from ovms_supervisor.api.context import CONTEXT, reply
from ovms_supervisor.api.requests import Query, read_body, remote_reference
from ovms_supervisor.pushing import reply_of
from spec.api import PushReply, PushRequest
from spec.errors import InvalidReference
from spec.reference import DigestSource, Reference, parse_source

routes = web.RouteTableDef()


@routes.post("/push")
async def push(request: web.Request) -> web.Response:
    """Store an artifact in a registry. It goes on whether or not the client waits for it."""
    context = request.app[CONTEXT]
    Query(request)
    body = await read_body(request, PushRequest)
    reference = remote_reference(body.reference)
    change = context.supervisor.push(_local(body.source) if body.source else reference, reference)
    if not body.wait:
        context.operations.begin(change)
        return reply(PushReply(reference=str(reference), status="pushing"), status=202)
    return reply(reply_of(await context.operations.run(change)))


def _local(text: str) -> Reference | DigestSource:
    source = parse_source(text)
    if not isinstance(source, Reference | DigestSource):
        raise InvalidReference(f"{text[:200]!r} is a path; only what is in the store can be pushed")
    return source
