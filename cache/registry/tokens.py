"""What to send as ``Authorization``: access tokens of the registry's token service, or a password as it is.

Flows: distribution's token specification (GET with Basic), its OAuth 2 form (POST of an identity token), and Basic.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

import msgspec
from aiohttp import ClientResponse
from yarl import URL

from cache.registry.challenge import Challenge
from cache.registry.credentials import Credential, Credentials
from cache.registry.origin import check_target
from cache.registry.replies import read_bounded, refusal
from cache.registry.transport import Transport
from spec.decoding import NotDecodable, from_json
from spec.errors import AuthenticationFailed, RegistryGarbage

_MAX_REPLY_BYTES: Final = 128 * 1024
_MAX_TOKENS: Final = 256
_DEFAULT_LIFE_S: Final = 60
"""Of a token whose reply does not say (token specification)."""
_MARGIN_S: Final = 10
_CLIENT_ID: Final = "ovms-supervisor"
_SENDABLE: Final = re.compile(r"[!-~]+")

Key = tuple[URL, str, frozenset[str]]


class _Reply(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    value: str
    until: float


class Tokens:
    """Values of ``Authorization`` by registry, repository and scopes, kept for as long as they are good."""

    def __init__(
        self, transport: Transport, credentials: Credentials, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport = transport
        self._credentials = credentials
        self._clock = clock
        self._held: dict[Key, _Held] = {}
        self._lock = asyncio.Lock()

    def known(self, key: Key) -> str | None:
        """What to send at once, without waiting to be asked."""
        held = self._held.get(key)
        return held.value if held is not None and held.until > self._clock() else None

    async def answer(self, key: Key, challenges: Sequence[Challenge], refused: str | None) -> str:
        """What to send after a 401; ``refused`` is what was sent before.

        Requests that are refused at the same time share one answer. Raises AuthenticationFailed, RegistryGarbage,
        RegistryUnreachable, RegistryRefused, RateLimited, and what finding the credentials raises.
        """
        async with self._lock:
            known = self.known(key)
            if known is not None and known != refused:
                return known
            held = await self._fresh(key, challenges)
            if held.value == refused:
                raise AuthenticationFailed(f"{key[0].authority} denies the credentials", host=key[0].authority)
            while len(self._held) >= _MAX_TOKENS:
                del self._held[next(iter(self._held))]
            self._held[key] = held
            return held.value

    async def _fresh(self, key: Key, challenges: Sequence[Challenge]) -> _Held:
        registry, repository, scopes = key
        credential = await self._credentials.find(registry.authority, repository) or Credential()
        for challenge in challenges:
            if challenge.scheme == "bearer":
                if credential.registry_token:
                    return _Held(f"Bearer {_sendable(credential.registry_token, registry)}", float("inf"))
                return await self._fetch(registry, challenge, scopes | challenge.scopes, credential)
        if any(each.scheme == "basic" for each in challenges) and credential.password:
            return _Held(_basic(credential), float("inf"))
        raise AuthenticationFailed(f"{registry.authority} wants to know who asks", host=registry.authority)

    async def _fetch(self, registry: URL, challenge: Challenge, scopes: Iterable[str], credential: Credential) -> _Held:
        try:
            realm = URL(challenge.parameters.get("realm", ""))
        except ValueError as error:
            raise RegistryGarbage("the token service is no URL", host=registry.authority) from error
        check_target(realm, registry, "its token service")
        sorted_scopes = sorted(scopes)
        service = challenge.parameters.get("service", "")
        async with self._ask(realm, service, sorted_scopes, credential) as response:
            if response.status != 200:
                raise await refusal(response, "the request for a token")
            body = await read_bounded(response, _MAX_REPLY_BYTES, "the reply of the token service")
        try:
            reply = from_json(body, _Reply)
        except NotDecodable as error:
            raise RegistryGarbage("the token service answered no token", host=realm.authority) from error
        token = _sendable(reply.access_token or reply.token, realm)
        life = _DEFAULT_LIFE_S if reply.expires_in is None else reply.expires_in
        return _Held(f"Bearer {token}", self._clock() + max(life - _MARGIN_S, life / 2))

    def _ask(
        self, realm: URL, service: str, scopes: Sequence[str], credential: Credential
    ) -> AbstractAsyncContextManager[ClientResponse]:
        if credential.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credential.identity_token,
                "service": service,
                "client_id": _CLIENT_ID,
                "scope": " ".join(scopes),
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return self._transport.open("POST", realm, headers=headers, data=urlencode(form).encode())
        query = [("service", service)] if service else []
        url = realm.extend_query([*query, *(("scope", each) for each in scopes)])
        return self._transport.open(
            "GET", url, headers={"Authorization": _basic(credential)} if credential.password else {}
        )


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _sendable(token: str, source: URL) -> str:
    if not _SENDABLE.fullmatch(token):
        raise RegistryGarbage(f"the token of {source.authority} is empty or fits no header", host=source.authority)
    return token
