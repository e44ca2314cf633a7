"""The application on its sockets."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from ssl import SSLContext
from typing import cast

from aiohttp import web

from ovms_supervisor.api.app import create_app
from ovms_supervisor.api.context import Context
from ovms_supervisor.api.door import Door
from ovms_supervisor.api.listen import BACKLOG

_HANDSHAKE_S = 10.0


class _Site(web.SockSite):
    """A listening socket with a door."""

    def __init__(
        self, runner: web.AppRunner, listening: socket.socket, door: Door, tls: SSLContext | None = None
    ) -> None:
        super().__init__(runner, listening, ssl_context=tls, backlog=BACKLOG)
        self._listening = listening
        self._door = door

    async def start(self) -> None:
        """Accept connections."""
        await web.BaseSite.start(self)
        self._server = await asyncio.get_running_loop().create_server(
            self._door,
            sock=self._listening,
            ssl=self._ssl_context,
            ssl_handshake_timeout=_HANDSHAKE_S if self._ssl_context else None,
            backlog=self._backlog,
        )


async def serve(context: Context, listening: socket.socket, stack: AsyncExitStack, *, last_s: float) -> None:
    """Serve the API until the stack is closed; then handlers get ``last_s`` seconds for their last replies."""
    runner = web.AppRunner(create_app(context), handler_cancellation=True, shutdown_timeout=last_s)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    door = Door(cast(web.Server, runner.server), context.limits, lambda: context.lag.recent_s)
    await _Site(runner, listening, door).start()
    if context.remote is not None:
        await _Site(runner, context.remote.listening, door, context.remote.tls).start()
