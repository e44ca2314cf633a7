"""Around every request: an id that all its log lines have, figures, and errors made into problem documents.

One function, in which nothing is made that is not needed: this is most of what the API costs above bare aiohttp.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from structlog.contextvars import bind_contextvars

from ovms_supervisor.api.caller import caller_of
from ovms_supervisor.api.context import CONTEXT
from ovms_supervisor.api.problem import problem_response
from spec.errors import NotPermitted

REQUEST_ID = web.RequestKey("request_id", str)

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_QUIET_ROUTES = frozenset({"/inject"})
"""Data on its way to a guest, thousands of times a second perhaps: no change of what an operator looks after."""

_DAEMON = secrets.token_hex(8)
_numbers = itertools.count(1)

_log = structlog.get_logger(__name__)
_level = logging.getLogger(__name__)


@web.middleware
async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Name, time and count a request; its ``X-Request-Id`` is the caller's if that is a plain one.

    Every error becomes a problem document (streams see to their own: in the middle it is too late for a status).
    """
    given = request.headers.get("X-Request-Id")
    request_id = given if given and _GIVEN_ID.fullmatch(given) else f"{_DAEMON}{next(_numbers):016x}"
    request[REQUEST_ID] = request_id
    bind_contextvars(request_id=request_id)  # in the context of this connection's task: until its next request
    began = time.perf_counter()
    status = 499  # what nginx says of a client that went away
    try:
        _check_caller(request)
        if request.method not in _READS:
            _check_role(request)
        response = await handler(request)
        status = response.status
    except Exception as error:
        response = problem_response(error, request)
        status = response.status
    finally:
        _observe(request, status, time.perf_counter() - began)
    return response


def _check_caller(request: web.Request) -> None:
    remote = request.app[CONTEXT].remote
    if remote is not None and request.transport is not None and request.transport.get_extra_info("sslcontext"):
        remote.authenticate(request)


def _check_role(request: web.Request) -> None:
    roles = request.app[CONTEXT].roles
    if roles.given and not roles.may_change(caller_of(request)):
        raise NotPermitted(f"{request.method} {request.path[:80]} changes something, and this caller may only look")


def _observe(request: web.Request, status: int, seconds: float) -> None:
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "none"
    request.app[CONTEXT].metrics.requests.observe(request.method, route, status, seconds)
    # Those who poll would fill the log, in which an operator looks for what was changed and what went wrong.
    quiet = status < 500 and (request.method in _READS or (route in _QUIET_ROUTES and status < 400))
    level = logging.DEBUG if quiet else logging.INFO
    if _level.isEnabledFor(level):
        caller = {} if request.method in _READS else caller_of(request).described
        ms = round(seconds * 1000, 2)
        _log.log(level, "request", method=request.method, path=request.path, status=status, ms=ms, **caller)


async def name_reply(request: web.Request, response: web.StreamResponse) -> None:
    """Put the request's id into the head of its reply (a signal, as streams send theirs before they return)."""
    response.headers["X-Request-Id"] = request[REQUEST_ID]
