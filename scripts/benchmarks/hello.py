"""The baseline of the API: an aiohttp server that says hello. ``python -m scripts.benchmarks.hello SOCKET LOOP``."""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web


async def _hello(request: web.Request) -> web.Response:
    if request.body_exists:
        await request.read()
    return web.Response(body=b'{"hello":"world"}', content_type="application/json")


async def _serve(path: str) -> None:
    app = web.Application()
    app.router.add_get("/hello", _hello)
    app.router.add_post("/hello", _hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, path).start()
    await asyncio.Event().wait()


def main(path: str, event_loop: str) -> None:
    if event_loop == "uvloop":
        import uvloop

        uvloop.run(_serve(path))
    else:
        asyncio.run(_serve(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
