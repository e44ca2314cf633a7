"""Requests to registries with the authorization that each of them asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import ClientResponse
from yarl import URL

from cache.registry.challenge import parse_challenges
from cache.registry.tokens import Tokens
from cache.registry.transport import Transport

PULL: Final = "pull"
PUSH: Final = "pull,push"


class Session:
    """The transport, and the tokens for it."""

    def __init__(self, transport: Transport, tokens: Tokens) -> None:
        self._transport = transport
        self._tokens = tokens

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: URL,
        repository: str,
        *,
        actions: str = PULL,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> AsyncIterator[ClientResponse]:
        """The reply to a request about a repository; after a 401 it is sent once more, with what was asked for.

        Raises what ``Transport.open`` and ``Tokens.answer`` raise.
        """
        key = (url.origin(), repository, frozenset({f"repository:{repository}:{actions}"}))
        sent = dict(headers or {})
        known = self._tokens.known(key)
        if known is not None:
            sent["Authorization"] = known
        async with self._transport.open(method, url, headers=sent, data=data) as response:
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            if response.status != 401 or not challenges or response.url.origin() != url.origin():
                yield response
                return
        sent["Authorization"] = await self._tokens.answer(key, challenges, known)
        async with self._transport.open(method, url, headers=sent, data=data) as response:
            yield response
