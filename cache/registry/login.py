"""Logging in to a registry and out of it: tried first, then kept where docker and podman look."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from cache.registry.auth_file import file_for, helper_in, remove_credential, write_credential
from cache.registry.challenge import parse_challenges
from cache.registry.credential_helper import erase_from_helper, store_in_helper
from cache.registry.credentials import Credential, Credentials
from cache.registry.docker_hub import server_of
from cache.registry.replies import refusal
from cache.registry.tokens import Tokens
from cache.registry.transport import Transport
from spec.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Where a login is kept now."""

    place: str
    """A file, or a credential helper."""
    is_plain: bool
    """Whether who can read the file can read the password."""
    is_checked: bool
    """False: the registry did not want to know who asks."""


async def log_in(
    transport: Transport, registry: URL, files: Sequence[Path], host: str, username: str, password: str
) -> LoggedIn:
    """Show a user and password to a registry, and keep them if it takes them.

    Raises AuthenticationFailed, RegistryError and its other kinds, InvalidConfig, MissingTool, PermissionMissing,
    InvalidInput.
    """
    if not username or ":" in username or not password or "\0" in username + password:
        raise InvalidInput("a login takes a user name without a colon, and a password")
    credential = Credential(username, password)
    checked = await check_credential(transport, registry, credential)
    path = await asyncio.to_thread(file_for, files, host)
    helper = await asyncio.to_thread(helper_in, path, host)
    if helper is None:
        await asyncio.to_thread(write_credential, path, host, credential)
        return LoggedIn(str(path), is_plain=True, is_checked=checked)
    await store_in_helper(helper, server_of(host), username, password)
    await asyncio.to_thread(write_credential, path, host, None)
    return LoggedIn(f"docker-credential-{helper}", is_plain=False, is_checked=checked)


async def log_out(files: Sequence[Path], host: str) -> list[str]:
    """Forget all logins at ``host``; where they were. Raises InvalidConfig, MissingTool, AuthenticationFailed."""
    places = []
    for path in files:
        if not await asyncio.to_thread(path.exists):
            continue
        helper = await asyncio.to_thread(helper_in, path, host)
        if helper is not None and await erase_from_helper(helper, server_of(host)):
            places.append(f"docker-credential-{helper}")
        if await asyncio.to_thread(remove_credential, path, host):
            places.append(str(path))
    return places


async def check_credential(transport: Transport, registry: URL, credential: Credential) -> bool:
    """Whether a registry takes a credential; False: it did not ask for one.

    distribution-spec §API: ``GET /v2/``. Raises AuthenticationFailed, RegistryError and its other kinds.
    """
    url = registry / "v2" / ""
    async with transport.open("GET", url, headers={}) as response:
        if response.status == 200:
            return False
        if response.status != 401:
            raise await refusal(response, "the question whether it is a registry")
        challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
    tokens = Tokens(transport, _Given(credential))
    authorization = await tokens.answer((registry, "", frozenset()), challenges, None)
    async with transport.open("GET", url, headers={"Authorization": authorization}) as response:
        if response.status != 200:
            raise await refusal(response, "the login")
    return True


class _Given(Credentials):
    def __init__(self, credential: Credential) -> None:
        super().__init__(())
        self._credential = credential

    async def find(self, host: str, repository: str = "") -> Credential | None:  # noqa: ARG002 - as it is overridden
        return self._credential
