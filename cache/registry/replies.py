"""Reading what registries answer, with a bound; and what their refusals mean to a user."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import ClientResponse

from cache.registry.retry import retry_after_s
from spec.decoding import NotDecodable, from_json
from spec.errors import AuthenticationFailed, RateLimited, RegistryGarbage, RegistryRefused

_MAX_ERROR_BYTES: Final = 64 * 1024
_MAX_SHOWN: Final = 300


class _Error(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: list[_Error] = []


async def read_bounded(response: ClientResponse, limit: int, what: str) -> bytes:
    """The whole body. Raises RegistryGarbage beyond ``limit`` bytes, whatever the header announces."""
    data = bytearray()
    if (response.content_length or 0) <= limit:
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > limit:
                break
        else:
            return bytes(data)
    raise RegistryGarbage(f"{what} has more than {limit} bytes", host=response.url.authority, limit_bytes=limit)


async def refusal(response: ClientResponse, what: str) -> RegistryRefused | AuthenticationFailed | RateLimited:
    """The error for a reply that is none of those expected; ``what`` was asked for, for people."""
    host, status = response.url.authority, response.status
    detail = f"{host} answered {status} to {what}"
    if said := await _said(response):
        detail += f": {said}"
    if status in (401, 403):
        return AuthenticationFailed(detail, host=host, status=status)
    if status == 429:
        return RateLimited(detail, host=host, retry_after_s=retry_after_s(response.headers.get("Retry-After")))
    return RegistryRefused(detail, host=host, status=status)


async def _said(response: ClientResponse) -> str:
    try:
        document = from_json(await read_bounded(response, _MAX_ERROR_BYTES, "an error"), _Errors)
    except (NotDecodable, RegistryGarbage):
        return ""
    text = "; ".join(": ".join(filter(None, (each.code, each.message))) for each in document.errors)
    return "".join(each if each.isprintable() else " " for each in text)[:_MAX_SHOWN].strip()
