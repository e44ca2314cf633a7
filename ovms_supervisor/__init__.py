"""Many machines: instances, the supervisor, its API, client and command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_supervisor.version import VERSION

if TYPE_CHECKING:
    from ovms_supervisor.client import Client as Client

__version__ = VERSION
__all__ = ["Client", "__version__"]


def __getattr__(name: str) -> Any:
    """``Client`` on demand: importing aiohttp takes longer than ``ovm --help`` may."""
    if name == "Client":
        from ovms_supervisor.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
