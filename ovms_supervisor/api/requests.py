"""What a request says, strictly: body, query, waiting time. What is wrong is InvalidRequest with its path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web

from ovms_supervisor.api.context import CONTEXT
from spec.decoding import NotDecodable, from_json
from spec.errors import InvalidReference, InvalidRequest
from spec.reference import Reference, parse_reference

MAX_BODY_BYTES = 64 << 10
MAX_WAIT_S = 3600.0
DEFAULT_WAIT_S = 60.0

T = TypeVar("T")


async def read_body(request: web.Request, kind: type[T], *, max_bytes: int = MAX_BODY_BYTES) -> T:
    """The JSON body. Any Content-Type will do: ``curl -d`` says it is a form.

    Raises InvalidRequest, Overloaded, HTTPRequestTimeout, or HTTPRequestEntityTooLarge as soon as the body turns out
    to be too long, which for one that says its length is before any of it is read.
    """
    context = request.app[CONTEXT]
    size_bytes = max_bytes if request.content_length is None else request.content_length
    if size_bytes > max_bytes:
        raise _too_large(max_bytes, size_bytes)
    with context.body_room.taking(size_bytes) if size_bytes > MAX_BODY_BYTES else nullcontext():
        try:
            async with asyncio.timeout(context.limits.body_s):
                body = await _read(request, max_bytes)
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the body of the request did not come in time") from None
        try:
            return from_json(body, kind)
        except NotDecodable as error:
            what = "" if error.is_json else "the body is not JSON: "
            raise InvalidRequest(f"{what}{error}", path=error.path) from None


async def _read(request: web.Request, max_bytes: int) -> bytearray:
    body = bytearray()  # not request.read(): its limit is the application's, not the endpoint's
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes, len(body))
    return body


def remote_reference(text: str) -> Reference:
    """A reference that names a registry. Raises InvalidReference."""
    reference = parse_reference(text)
    if reference.registry is None:
        raise InvalidReference(
            f"{text[:200]!r} names no registry: short names are local", remedy="Write HOST[:PORT]/NAME[:TAG]."
        )
    return reference


def _too_large(max_bytes: int, size_bytes: int) -> web.HTTPRequestEntityTooLarge:
    return web.HTTPRequestEntityTooLarge(
        max_size=max_bytes, actual_size=size_bytes, text=f"the body is longer than {max_bytes} bytes"
    )


class Query:
    """The query of a request, each parameter at most once, unknown ones refused."""

    def __init__(self, request: web.Request, *known: str) -> None:
        self._values: dict[str, str] = {}
        if not request.rel_url.raw_query_string:
            return
        for name, value in request.query.items():
            if name not in known:
                expected = f"it may have {', '.join(known)}" if known else "it has none"
                raise InvalidRequest(f"unknown query parameter {name[:40]!r}; {expected}", path=name[:40])
            if name in self._values:
                raise InvalidRequest(f"query parameter {name!r} is given twice", path=name)
            self._values[name] = value

    def flag(self, name: str) -> bool:
        """``true``, ``1`` or ``false``, ``0``; false if absent."""
        return self.choice(name, "true", "1", "false", "0") in ("true", "1")

    def choice(self, name: str, *choices: str) -> str | None:
        """One of some words, or None if absent."""
        value = self._values.get(name)
        if value is not None and value not in choices:
            raise InvalidRequest(f"{name} is {value[:40]!r}; it may be {', '.join(choices)}", path=name)
        return value

    def parsed(self, name: str, parse: Callable[[str], T]) -> T | None:
        """What a parser (which raises InvalidRequest) makes of it, or None if absent."""
        value = self._values.get(name)
        return None if value is None else parse(value)

    def count(self, name: str) -> int | None:
        """A whole number from 0 on, or None if absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if not value.isascii() or not value.isdigit() or len(value) > 18:
            raise InvalidRequest(f"{name} is {value[:40]!r}, which is not a whole number", path=name)
        return int(value)

    def seconds(self, name: str, *, most: float) -> float | None:
        """A time from 0 to ``most`` seconds, or None if absent."""
        value = self._values.get(name)
        if value is None:
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1
        if not 0 <= seconds <= most:
            raise InvalidRequest(f"{name} is {value[:40]!r}; it is a number of seconds up to {most:g}", path=name)
        return seconds


@dataclass(frozen=True, slots=True)
class Wait:
    """``?wait=STATE&timeout=SECONDS``."""

    state: str
    timeout_s: float

    @classmethod
    def of(cls, query: Query, *states: str) -> Wait | None:
        """What the query says; None without ``wait``."""
        state = query.choice("wait", *states)
        timeout_s = query.seconds("timeout", most=MAX_WAIT_S)
        if state is None:
            if timeout_s is not None:
                raise InvalidRequest("timeout has a meaning only with wait", path="timeout")
            return None
        return cls(state, DEFAULT_WAIT_S if timeout_s is None else timeout_s)
