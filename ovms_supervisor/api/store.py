"""What lies on this host without running: resident images, and the garbage of the store."""

from __future__ import annotations

from aiohttp import web

from ovms_supervisor.api.context import CONTEXT, reply
from ovms_supervisor.api.requests import Query, read_body
from spec.api import ImageList, PruneRequest

routes = web.RouteTableDef()


@routes.get("/images")
async def images(request: web.Request) -> web.Response:
    """The RAM images that are resident."""
    Query(request)
    return reply(ImageList(images=await request.app[CONTEXT].supervisor.housekeeping.images()))


@routes.delete("/images/{digest}")
async def free(request: web.Request) -> web.Response:
    """Give the memory of an image back that nobody uses."""
    context = request.app[CONTEXT]
    Query(request)
    await context.operations.run(context.supervisor.housekeeping.free_image(request.match_info["digest"]))
    return web.Response(status=204)


@routes.post("/prune")
async def prune(request: web.Request) -> web.Response:
    """Remove what nobody refers to any more."""
    context = request.app[CONTEXT]
    Query(request)
    body = await read_body(request, PruneRequest)
    return reply(await context.operations.run(context.supervisor.housekeeping.prune(body)))
