"""``GET /logs/{id}``: the console as bytes, as JSON lines, or as JSON frames over WebSocket."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from weakref import WeakKeyDictionary

import msgspec
from aiohttp import web

from ovms_supervisor.api.context import CONTEXT, Context
from ovms_supervisor.api.requests import Query
from ovms_supervisor.api.streaming import stream_http, stream_websocket, wants_websocket
from ovms_supervisor.logs.console_file import RawLine
from ovms_supervisor.logs.console_log import ConsoleLog, log_line
from ovms_supervisor.logs.cursor import Cursor, Item
from ovms_supervisor.logs.window import Window, format_time, parse_tail, parse_time
from spec.api import LogEnd, LogGap

JSON_LINES = "application/x-ndjson"

_encoder = msgspec.json.Encoder()
_latest: WeakKeyDictionary[ConsoleLog, tuple[tuple[int, int], bytes]] = WeakKeyDictionary()
"""The lines of each console that were sent last, by their numbers, which mean the same lines for ever."""

routes = web.RouteTableDef()


@routes.get("/logs/{instance_id}", allow_head=False)
async def logs(request: web.Request) -> web.StreamResponse:
    """Replay, and with ``follow`` go on live until the instance ends."""
    context = request.app[CONTEXT]
    query = Query(request, "follow", "tail", "since", "until", "timestamps", "format", "batch")
    now_ns = time.time_ns()
    window = Window(
        tail=query.parsed("tail", parse_tail),
        since_ns=query.parsed("since", lambda text: parse_time(text, name="since", now_ns=now_ns)),
        until_ns=query.parsed("until", lambda text: parse_time(text, name="until", now_ns=now_ns)),
    )
    follow, timestamps, together = query.flag("follow"), query.flag("timestamps"), query.flag("batch")
    shape = query.choice("format", "plain", "json")
    instance = context.supervisor.find(request.match_info["instance_id"])
    async with instance.console.cursor(window, follow=follow) as cursor, aclosing(_batches(context, cursor)) as batches:
        if wants_websocket(request):
            frames = partial(_one_frame, instance.console) if together else _frames
            return await stream_websocket(request, batches, frames)
        if shape == "json" or (shape is None and JSON_LINES in request.headers.get("Accept", "")):
            return await stream_http(request, batches, _json_lines, JSON_LINES)
        return await stream_http(request, batches, _plain(timestamps=timestamps), "text/plain")


async def _batches(context: Context, cursor: Cursor) -> AsyncGenerator[list[Item], None]:
    while batch := await cursor.next_batch():
        for item in batch:
            if isinstance(item, LogGap):
                context.metrics.log_lines_lost.inc(item.lost)
        yield batch


def _frames(batch: list[Item]) -> list[bytes]:
    return [_encoder.encode(log_line(item) if isinstance(item, RawLine) else item) for item in batch]


def _json_lines(batch: list[Item]) -> bytes:
    return b"\n".join([*_frames(batch), b""])


def _one_frame(console: ConsoleLog, batch: list[Item]) -> list[bytes]:
    """All of them as one frame, which is made once for all who read the same lines in the same moment."""
    first, last = batch[0], batch[-1]
    if not isinstance(first, RawLine) or not isinstance(last, RawLine):
        return [b"\n".join(_frames(batch))]
    known, frame = _latest.get(console, ((0, 0), b""))
    if known != (first.seq, last.seq):
        frame = b"\n".join(_frames(batch))
        _latest[console] = ((first.seq, last.seq), frame)
    return [frame]


def _plain(*, timestamps: bool) -> Callable[[list[Item]], bytes]:
    """The guest's own bytes, line ends as ``\\n``. A gap is a line of ours; parts of an overlong line come joined."""
    inside_line = False

    def encode(batch: list[Item]) -> bytes:
        nonlocal inside_line
        out = bytearray()
        for item in batch:
            if isinstance(item, LogEnd):
                continue
            if isinstance(item, LogGap):
                out += b"\n" * inside_line + f"[{item.lost} lines are missing here: {item.reason}]\n".encode()
                inside_line = False
                continue
            if timestamps and not inside_line:
                out += format_time(item.ts_ns).encode() + b" "
            out += item.data
            inside_line = item.partial
            if not inside_line:
                out += b"\n"
        return bytes(out)

    return encode
