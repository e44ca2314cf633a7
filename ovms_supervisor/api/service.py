"""About the daemon itself: health, readiness, version, figures, and the document of this API."""

from __future__ import annotations

import platform
from importlib.resources import files

from aiohttp import web

from ovms_supervisor.api.context import CONTEXT, reply
from ovms_supervisor.api.requests import Query
from ovms_supervisor.version import VERSION
from spec.api import Health, Readiness, Version

SPEC_VERSION = "0.1"

_DOCUMENT = files("spec").joinpath("api/ovms-runtime.openapi.yaml").read_bytes()

routes = web.RouteTableDef()


@routes.get("/healthz")
async def healthz(request: web.Request) -> web.Response:
    """That there is an answer is the answer; and how late the event loop has been lately."""
    Query(request)
    return reply(Health(status="ok", loop_lag_ms=round(request.app[CONTEXT].lag.recent_s * 1000, 2)))


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """Whether starts can succeed; 503 with the reasons if not."""
    context = request.app[CONTEXT]
    Query(request)
    reasons = await context.supervisor.readiness()
    if context.stopping.is_set():
        reasons = ["the daemon is stopping", *reasons]
    return reply(Readiness(ready=not reasons, reasons=reasons), status=503 if reasons else 200)


@routes.get("/version")
async def version(request: web.Request) -> web.Response:
    """Versions of the daemon, of the specification and of Python."""
    Query(request)
    return reply(Version(version=VERSION, spec=SPEC_VERSION, python=platform.python_version()))


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    """Figures for Prometheus."""
    context = request.app[CONTEXT]
    Query(request)
    body = await context.metrics.render(context.supervisor)
    return web.Response(body=body, headers={"Content-Type": context.metrics.content_type})


@routes.get("/openapi.yaml")
async def openapi(request: web.Request) -> web.Response:
    """The normative description of this API."""
    Query(request)
    return web.Response(body=_DOCUMENT, content_type="application/yaml")
