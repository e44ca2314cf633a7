"""``GET /events``: what happens, as JSON lines or as JSON frames over WebSocket."""

from __future__ import annotations

import msgspec
from aiohttp import web

from ovms_supervisor.api.context import CONTEXT
from ovms_supervisor.api.logs import JSON_LINES
from ovms_supervisor.api.requests import Query
from ovms_supervisor.api.streaming import stream_http, stream_websocket, wants_websocket
from spec.api import Event

_encoder = msgspec.json.Encoder(enc_hook=str)

routes = web.RouteTableDef()


@routes.get("/events", allow_head=False)
async def events(request: web.Request) -> web.StreamResponse:
    """Events from now on, or with ``since`` those after that number first; until the client leaves."""
    context = request.app[CONTEXT]
    since = Query(request, "since").count("since")
    # Subscribed before the reply's head is sent: who has read the head misses nothing from then on.
    with context.metrics.event_subscribers.track_inprogress():
        async with context.supervisor.events.subscribe(since) as subscription:
            if wants_websocket(request):
                return await stream_websocket(request, subscription, _frame)
            return await stream_http(request, subscription, _line, JSON_LINES)


def _frame(event: Event) -> list[bytes]:
    return [_encoder.encode(event)]


def _line(event: Event) -> bytes:
    return _encoder.encode(event) + b"\n"
