"""The event loop that the daemon runs on.

uvloop serves sockets at half the cost or less. Only its way to start processes is to be avoided: it forks the daemon,
however large, and blocks meanwhile; VMMs are started by :mod:`vmm.spawn` on any loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec

from ovms_supervisor.config.settings import EventLoop
from spec.errors import InvalidConfig


def loop_factory(wanted: EventLoop) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the loop, for ``asyncio.Runner``; None: asyncio's own. Raises InvalidConfig."""
    if wanted == "asyncio" or (wanted == "auto" and find_spec("uvloop") is None):
        return None
    try:
        import uvloop
    except ImportError as error:
        if wanted == "auto":  # built for another Python, perhaps
            return None
        raise InvalidConfig(
            f"event_loop is uvloop, which cannot be imported: {error}",
            remedy="Install ovms-supervisor[uvloop], or set event_loop to auto.",
        ) from error
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
