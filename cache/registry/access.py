"""Registries as this host reaches them: one transport, the user's credentials, and the configured exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from cache.registry.client import Repository
from cache.registry.credentials import Credentials
from cache.registry.origin import Scheme
from cache.registry.retry import RetryPolicy
from cache.registry.session import Session
from cache.registry.tokens import Tokens
from cache.registry.transport import Transport
from spec.reference import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How registries are to be reached."""

    auth_files: tuple[Path, ...] = ()
    """Of docker and podman, see :func:`cache.registry.credentials.credential_files`."""
    plain_http: Iterable[str] = ()
    """Hosts (``name[:port]``) that are spoken to without TLS; those on loopback always are."""
    ca_file: Path | None = None
    """Certificate authorities (PEM) besides those of the system."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class Registries:
    """Open connections to registries. Made by :func:`open_registries`."""

    def __init__(self, access: Access, transport: Transport) -> None:
        self.retry = access.retry
        self.transport = transport
        self._schemes: dict[str, Scheme] = dict.fromkeys(access.plain_http, "http")
        self._session = Session(transport, Tokens(transport, Credentials(access.auth_files)))

    def url(self, reference: Reference) -> URL:
        """The origin of the registry that a reference names. Raises InvalidReference if it names none."""
        return self.repository(reference).origin

    def repository(self, reference: Reference) -> Repository:
        """The repository that a reference names. Raises InvalidReference if it names no registry."""
        return Repository(self._session, reference, self._schemes)


@asynccontextmanager
async def open_registries(access: Access) -> AsyncIterator[Registries]:
    """Connections for as long as the context lasts. Raises FileMissing, PermissionMissing, InvalidConfig."""
    async with Transport(ca_file=access.ca_file, retry=access.retry) as transport:
        yield Registries(access, transport)
