"""Parked clones: order, list, dissolve."""

from __future__ import annotations

from aiohttp import web

from ovms_supervisor.api.context import CONTEXT, reply
from ovms_supervisor.api.requests import Query, Wait, read_body
from ovms_supervisor.api.waiting import until
from spec.api import WarmList, WarmRequest
from spec.errors import InvalidRequest

routes = web.RouteTableDef()


@routes.get("/warm")
async def pools(request: web.Request) -> web.Response:
    """Of which artifacts clones are kept parked, and how it goes."""
    Query(request)
    return reply(WarmList(pools=request.app[CONTEXT].supervisor.pool.infos()))


@routes.post("/warm")
async def order(request: web.Request) -> web.Response:
    """Keep clones of an artifact parked."""
    context, wait = request.app[CONTEXT], Wait.of(Query(request, "wait", "timeout"), "parked")
    body = await read_body(request, WarmRequest)
    pool = await context.operations.run(context.supervisor.order_parked(body))
    if wait and pool.max:
        await until(context, context.supervisor.pool.settled(body.manifest), wait.timeout_s)
        pool = next((each for each in context.supervisor.pool.infos() if each.manifest == pool.manifest), pool)
    return reply(pool)


@routes.delete("/warm")
async def dissolve(request: web.Request) -> web.Response:
    """Keep no clones of an artifact any more."""
    context = request.app[CONTEXT]
    manifest = Query(request, "manifest").parsed("manifest", str)
    if not manifest:
        raise InvalidRequest("the query parameter manifest is missing", path="manifest")
    await context.operations.run(context.supervisor.dissolve_parked(manifest))
    return web.Response(status=204)
