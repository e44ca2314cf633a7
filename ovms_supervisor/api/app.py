"""The application: routes, middleware, and what happens when it stops."""

from __future__ import annotations

from aiohttp import web

from ovms_supervisor.api import events, instances, logs, pulls, pushes, service, store, warm
from ovms_supervisor.api.context import CONTEXT, Context
from ovms_supervisor.api.middleware import name_reply, observed


def create_app(context: Context) -> web.Application:
    """The API of one daemon. It stops in this order: waiting and streams end, then changes under way."""
    app = web.Application(middlewares=[observed])
    app[CONTEXT] = context
    for module in (instances, warm, pulls, pushes, store, logs, events, service):
        app.add_routes(module.routes)
    app.on_response_prepare.append(name_reply)
    app.on_shutdown.append(_shut_down)
    return app


async def _shut_down(app: web.Application) -> None:
    context = app[CONTEXT]
    context.stopping.set()
    await context.streams.end()
    await context.operations.drain(context.drain_s)
