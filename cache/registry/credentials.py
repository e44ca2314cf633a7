"""Passwords and tokens that docker and podman keep: their configuration files and credential helpers.

Formats: docker's ``config.json`` and containers-auth.json(5), which are the same but for the keys of ``auths``: podman
allows a repository or a part of its path there, docker has URLs of old.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from cache.host_errors import host_errors
from cache.registry.credential_helper import ask_helper
from cache.registry.docker_hub import names_of, server_of
from spec.decoding import NotDecodable, from_json
from spec.errors import FileMissing, InvalidConfig

MAX_FILE_BYTES: Final = 4 << 20
_IDENTITY_USER: Final = "<token>"


@dataclass(frozen=True, slots=True)
class Credential:
    """What to show to a registry or its token service; any of it may be empty."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """Traded for an access token (OAuth 2 refresh token)."""
    registry_token: str = field(default="", repr=False)
    """An access token as it is."""


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _File(msgspec.Struct, frozen=True):
    auths: dict[str, _Entry] = {}
    creds_store: str = msgspec.field(default="", name="credsStore")
    cred_helpers: dict[str, str] = msgspec.field(default_factory=dict, name="credHelpers")


class Credentials:
    """Looks credentials up, anew each time: a login takes effect at once."""

    def __init__(self, files: Sequence[Path]) -> None:
        """``files`` in the order of their precedence; those that are not there are passed over."""
        self._files = tuple(files)

    async def find(self, host: str, repository: str = "") -> Credential | None:
        """What there is for ``host`` (``name[:port]``) or, more specific, for a repository of it.

        Raises InvalidConfig for a damaged file, PermissionMissing, and what :func:`ask_helper` raises.
        """
        for path in self._files:
            content = await asyncio.to_thread(_read, path)
            if content is not None and (found := await _find_in(content, path, host, repository)):
                return found
        return None


def credential_files(environment: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    """Where podman and docker look: a file that the environment names is the only one of its kind."""
    if named := environment.get("REGISTRY_AUTH_FILE"):
        podman = [Path(named)]
    else:
        runtime = environment.get("XDG_RUNTIME_DIR")
        podman = [Path(runtime, "containers/auth.json")] if runtime else []
        podman.append(Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "containers/auth.json"))
    return (*podman, Path(environment.get("DOCKER_CONFIG") or home / ".docker", "config.json"))


def _read(path: Path) -> _File | None:
    try:
        with host_errors(path), path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except FileMissing:
        return None
    try:
        return from_json(data or b"{}", _File)
    except NotDecodable as error:
        # The message names a JSON path and types, never a value.
        raise InvalidConfig(f"{path}: {error}", path=str(path)) from error


async def _find_in(content: _File, path: Path, host: str, repository: str) -> Credential | None:
    own = (content.cred_helpers.get(each) for each in (server_of(host), *names_of(host)))
    if helper := next(filter(None, own), None) or content.creds_store:
        reply = await ask_helper(helper, server_of(host))
        if reply is not None and reply.secret:
            if reply.username == _IDENTITY_USER:
                return Credential(identity_token=reply.secret)
            return Credential(reply.username, reply.secret)
    entries = {plain_key(key): entry for key, entry in content.auths.items()}
    for key in (key for name in names_of(host) for key in _keys(name, repository)):
        if key in entries and (found := _credential(entries[key], path, key)) != Credential():
            return found
    return None


def _keys(host: str, repository: str) -> Iterator[str]:
    parts = [part for part in repository.split("/") if part]
    for length in range(len(parts), 0, -1):
        yield "/".join((host, *parts[:length]))
    yield host


def plain_key(key: str) -> str:
    """What a key of ``auths`` is about: a host, or a host and a part of a path."""
    plain = key.removeprefix("https://").removeprefix("http://")
    if plain != key:  # a URL of docker: its path is that of the API, not of a repository
        return plain.partition("/")[0]
    return plain.rstrip("/")


def _credential(entry: _Entry, path: Path, key: str) -> Credential:
    username, password = entry.username, entry.password
    if entry.auth:
        try:
            username, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
        except (binascii.Error, ValueError) as error:
            raise InvalidConfig(f"{path}: 'auth' of {key} is not base64", path=str(path)) from error
        if not colon:
            raise InvalidConfig(f"{path}: 'auth' of {key} is not user:password", path=str(path))
        password = password.rstrip("\0")
    return Credential(username, password, entry.identitytoken, entry.registrytoken)
