"""Around every request: an id that all its log lines have, figures, and errors made into problem documents."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from structlog.contextvars import bound_contextvars

from ovms_supervisor.api.context import CONTEXT
from ovms_supervisor.api.problem import problem_response

REQUEST_ID = web.RequestKey("request_id", str)

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_READS = frozenset({"GET", "HEAD", "OPTIONS"})

_log = structlog.get_logger(__name__)


@web.middleware
async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Name, time and count a request; its ``X-Request-Id`` is the caller's if that is a plain one."""
    given = request.headers.get("X-Request-Id", "")
    request_id = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "none"
    began = time.perf_counter()
    status = 499  # what nginx says of a client that went away
    with bound_contextvars(request_id=request_id):
        try:
            request[REQUEST_ID] = request_id
            response = await handler(request)
            status = response.status
            return response
        finally:
            seconds = time.perf_counter() - began
            request.app[CONTEXT].metrics.observe_request(request.method, route, status, seconds)
            # Those who poll would fill the log, in which an operator looks for what was changed and what went wrong.
            tell = _log.debug if request.method in _READS and status < 500 else _log.info
            tell("request", method=request.method, path=request.path, status=status, ms=round(seconds * 1000, 2))


async def name_reply(request: web.Request, response: web.StreamResponse) -> None:
    """Put the request's id into the head of its reply (a signal, as streams send theirs before they return)."""
    response.headers["X-Request-Id"] = request[REQUEST_ID]


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as a problem document (streams see to their own: in the middle it is too late for a status)."""
    try:
        return await handler(request)
    except Exception as error:
        return problem_response(error, request)
