"""The watchdog of the service manager: told that we live, by the event loop itself, for as long as it turns.

systemd kills a daemon that was silent for ``WATCHDOG_USEC`` (sd_watchdog_enabled(3)) and starts a new one, which takes
the machines over. Nothing but the loop sends the sign: one that is stuck is what this is to find.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from ovms_supervisor.sd_notify import sd_notify

_SIGNS_PER_LIMIT = 3
"""So that one that comes late does no harm."""


class Watchdog:
    """Gives signs of life where a service manager asks for them. An async context manager."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._interval_s = watchdog_limit_s(environ) / _SIGNS_PER_LIMIT
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        if self._interval_s:
            self._sign()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer:
            self._timer.cancel()

    def _sign(self) -> None:
        sd_notify("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._sign)


def watchdog_limit_s(environ: Mapping[str, str]) -> float:
    """After which silence we would be killed; 0 if nobody watches us."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0.0
