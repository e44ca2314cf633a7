"""The one registry whose API is on another host than its references have, and whose logins are kept under a third."""

from __future__ import annotations

from typing import Final

_API: Final = "registry-1.docker.io"
_NAMES: Final = ("index.docker.io", "docker.io", _API)
_SERVER: Final = "https://index.docker.io/v1/"


def api_host(host: str) -> str:
    """Where the API of a registry is, from the host in a reference."""
    return _API if host in _NAMES else host


def names_of(host: str) -> tuple[str, ...]:
    """All hosts under which a login for ``host`` may be kept."""
    return _NAMES if host in _NAMES else (host,)


def server_of(host: str) -> str:
    """What docker calls the registry in its file, and towards credential helpers."""
    return _SERVER if host in _NAMES else host
