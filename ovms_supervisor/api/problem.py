"""Errors as ``application/problem+json`` (RFC 9457). The one place where an error becomes an HTTP status."""

from __future__ import annotations

import errno
from http import HTTPStatus

import msgspec
import structlog
from aiohttp import web
from structlog.contextvars import get_contextvars

from spec import errors
from spec.api import Problem
from spec.errors import OvmsError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5

_STATUS: dict[type[OvmsError], HTTPStatus] = {
    OvmsError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.InvalidInput: HTTPStatus.BAD_REQUEST,
    errors.Unsupported: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.Corrupt: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.Denied: HTTPStatus.FORBIDDEN,
    errors.NotAuthenticated: HTTPStatus.UNAUTHORIZED,
    errors.HostLimit: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NoSpace: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.VmmFailure: HTTPStatus.BAD_GATEWAY,
    errors.VmmTimeout: HTTPStatus.GATEWAY_TIMEOUT,
    errors.RegistryError: HTTPStatus.BAD_GATEWAY,
    errors.RateLimited: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DaemonUnreachable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""A class that is not here has the status of its nearest ancestor."""

_log = structlog.get_logger(__name__)


def status_of(kind: type[OvmsError]) -> HTTPStatus:
    """The HTTP status of an error class."""
    return next(_STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in _STATUS)


def as_ovms_error(error: Exception) -> OvmsError:
    """Any exception as one of ours. What we do not know is logged with its traceback, which callers never see."""
    if isinstance(error, OvmsError):
        return error
    if isinstance(error, web.HTTPNotFound):
        return errors.NotFound("there is no such endpoint", remedy="GET /openapi.yaml lists all endpoints.")
    if isinstance(error, web.HTTPException):
        return errors.InvalidRequest(error.text or error.reason)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.NoSpace(f"{error.filename or 'a file system'}: {error.strerror}")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return errors.HostLimit(
            "no more file descriptors", remedy="Raise LimitNOFILE of the daemon, or stop instances."
        )
    trace_id = get_contextvars().get("request_id", "")
    _log.error("unexpected error", exc_info=error)
    return errors.InternalError(
        f"an unexpected error; the daemon's log has it under request_id {trace_id}", trace_id=trace_id
    )


def problem_of(error: OvmsError, *, status: int, instance: str | None) -> Problem:
    """The document of an error; ``instance`` is the path of the request."""
    return Problem(
        type=f"urn:ovms:error:{error.code}",
        title=error.title,
        status=status,
        detail=error.detail,
        code=error.code,
        remedy=error.remedy,
        instance=instance,
        fields=error.fields,
    )


def encoded_problem(error: OvmsError, *, status: int) -> bytes:
    """The document of an error that belongs to no request."""
    return msgspec.json.encode(problem_of(error, status=status, instance=None))


def problem_response(error: Exception, request: web.BaseRequest) -> web.Response:
    """The reply to a request that failed with any exception."""
    ours = as_ovms_error(error)
    headers = {}
    status: int = status_of(type(ours))
    if isinstance(error, web.HTTPException):
        status = error.status
        if isinstance(error, web.HTTPMethodNotAllowed):
            headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="ovms"'
    problem = problem_of(ours, status=status, instance=request.path)
    try:
        # Fields may hold a path or another object that errors were raised with.
        body = msgspec.json.encode(problem, enc_hook=str)
    except UnicodeEncodeError:  # a file name that is not UTF-8
        body = msgspec.json.encode(msgspec.structs.replace(problem, detail=ascii(ours.detail), fields={}))
    return web.Response(body=body, status=status, content_type=MEDIA_TYPE, headers=headers)
