"""Requests to registries with the authorization that each of them asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import ClientResponse
from yarl import URL

from cache.registry.body import Body
from cache.registry.challenge import parse_challenges
from cache.registry.retry import RetryPolicy
from cache.registry.tokens import Tokens
from cache.registry.transport import Transport

PULL: Final = "pull"
PUSH: Final = "pull,push"


class Session:
    """The transport, and the tokens for it."""

    def __init__(self, transport: Transport, tokens: Tokens) -> None:
        self._transport = transport
        self._tokens = tokens

    @property
    def retry(self) -> RetryPolicy:
        """For those who try again themselves."""
        return self._transport.retry

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: URL,
        repository: str,
        *,
        actions: str = PULL,
        also: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        data: bytes | Body | None = None,
        once: bool = False,
    ) -> AsyncIterator[ClientResponse]:
        """The reply to a request about a repository; after a 401 it is sent once more, with what was asked for.

        ``also``: other repositories of that registry that it reads. ``once``: see ``Transport.open``.
        Raises what ``Transport.open`` and ``Tokens.answer`` raise.
        """
        scopes = {f"repository:{repository}:{actions}", *(f"repository:{each}:{PULL}" for each in also)}
        key = (url.origin(), repository, frozenset(scopes))
        sent = dict(headers or {})
        known = self._tokens.known(key)
        if known is not None:
            sent["Authorization"] = known
        async with self._transport.open(method, url, headers=sent, data=data, once=once) as response:
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            if response.status != 401 or not challenges or response.url.origin() != url.origin():
                yield response
                return
        sent["Authorization"] = await self._tokens.answer(key, challenges, known)
        async with self._transport.open(method, url, headers=sent, data=data, once=once) as response:
            yield response
