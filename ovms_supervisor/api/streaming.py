"""Replies without an end of their own, over plain HTTP and WebSocket.

A client that takes nothing for ``stall_s`` is cut off; one that leaves ends the stream at once (its handler is
cancelled); when the daemon stops, a WebSocket is closed with 1001 and a plain stream is broken off, so that nobody
takes it for complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from ovms_supervisor.api.context import CONTEXT

T = TypeVar("T")

HEARTBEAT_S = 30.0
_AT_ONCE_BYTES = 16 << 10
"""A quarter of what a transport takes before it lets the sender wait."""
MAX_CLIENT_FRAME_BYTES = 1024  # clients have nothing to say but close, ping and pong
MAX_CLIENT_MESSAGES = 16
"""Said all the same, before the connection is closed."""
_FRAMES_AT_ONCE = 16

_log = structlog.get_logger(__name__)


def wants_websocket(request: web.Request) -> bool:
    """Whether the request asks for an upgrade to WebSocket."""
    return request.headers.get("Upgrade", "").lower() == "websocket"


async def stream_http(
    request: web.Request, batches: AsyncIterator[T], encode: Callable[[T], bytes], content_type: str
) -> web.StreamResponse:
    """A chunked reply; each batch is sent as soon as it is there."""
    context = request.app[CONTEXT]
    response = web.StreamResponse(headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"})
    response.content_type = content_type
    response.enable_chunked_encoding()
    await response.prepare(request)

    async def break_off() -> None:
        _abort(request)

    with context.streams.open(break_off):
        try:
            async for batch in batches:
                async with asyncio.timeout(context.stall_s):
                    await response.write(encode(batch))
            await response.write_eof()
        except TimeoutError:
            _log.warning("a client that takes nothing was cut off", path=request.path)
            _abort(request)
        except ConnectionError:
            pass  # the client left
        except Exception:
            _log.exception("stream broken off", path=request.path)
            _abort(request)
    return response


async def stream_websocket(
    request: web.Request, batches: AsyncIterator[T], frames: Callable[[T], list[bytes]]
) -> web.WebSocketResponse:
    """Text frames; the socket is closed with 1000 behind the last one."""
    context = request.app[CONTEXT]
    socket = web.WebSocketResponse(
        heartbeat=HEARTBEAT_S, autoping=False, compress=False, max_msg_size=MAX_CLIENT_FRAME_BYTES
    )
    await socket.prepare(request)

    async def send_all() -> None:
        try:
            async for batch in batches:
                ready = frames(batch)
                if _takes_at_once(request, ready):
                    for frame in ready:
                        await socket.send_frame(frame, WSMsgType.TEXT)
                    continue
                async with asyncio.timeout(context.stall_s):
                    for frame in ready:
                        await socket.send_frame(frame, WSMsgType.TEXT)
            await socket.close()
        except TimeoutError:
            _log.warning("a client that takes nothing was cut off", path=request.path)
            _abort(request)
        except ConnectionError:
            pass  # the client left
        except Exception:
            _log.exception("stream broken off", path=request.path)
            await socket.close(code=WSCloseCode.INTERNAL_ERROR)

    async def go_away() -> None:
        await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the daemon stops")

    with context.streams.open(go_away):
        sender = asyncio.create_task(send_all())
        try:
            await _hear(request, socket, context.stall_s)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
    return socket


async def _hear(request: web.Request, socket: web.WebSocketResponse, stall_s: float) -> None:
    """Answer pings until the client closes, or is closed since it talks."""
    frames = messages = 0
    async for message in socket:
        frames += 1
        if frames % _FRAMES_AT_ONCE == 0:
            await asyncio.sleep(0)  # frames that are here already are got without a wait: others have their turn
        if message.type is WSMsgType.PING:
            try:
                async with asyncio.timeout(stall_s):
                    await socket.pong(message.data)
            except TimeoutError:
                _abort(request)
        elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            messages += 1
            if messages > MAX_CLIENT_MESSAGES:
                await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"nothing is expected from clients")


def _takes_at_once(request: web.Request, frames: list[bytes]) -> bool:
    """Whether nothing waits to be sent and the frames are so short that sending them cannot become waiting."""
    transport = request.transport
    return (
        isinstance(transport, asyncio.WriteTransport)
        and not transport.get_write_buffer_size()
        and sum(map(len, frames)) < _AT_ONCE_BYTES
    )


def _abort(request: web.Request) -> None:
    if isinstance(request.transport, asyncio.WriteTransport):
        request.transport.abort()
