"""How this daemon or command reaches registries: its settings, and the logins of docker and podman."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cache.registry.access import Access
from cache.registry.credentials import credential_files
from ovms_supervisor.config import Settings


def access_of(settings: Settings, *, plain_http: Iterable[str] = ()) -> Access:
    """The configured access; ``plain_http``: hosts that may be spoken to without TLS this time."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises where there is none
    return Access(
        auth_files=credential_files(os.environ, home),
        plain_http=(*settings.plain_http, *plain_http),
        ca_file=settings.ca_file,
    )
