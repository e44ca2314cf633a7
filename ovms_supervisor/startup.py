"""Word to the service manager while a daemon starts: taking over thousands of machines takes longer than it waits."""

from __future__ import annotations

import time
from typing import Final

from ovms_supervisor.sd_notify import sd_notify

_EVERY_S: Final = 1.0
_EXTENSION_S: Final = 30
"""How much longer we may take, counted from each word: more than one machine can take to answer."""


class Startup:
    """Tells how far the start is, at most once a second (sd_notify(3), ``EXTEND_TIMEOUT_USEC``)."""

    def __init__(self) -> None:
        self._told_at_s = float("-inf")

    def taken_over(self, done: int, of: int) -> None:
        """So many of the machines of an earlier daemon have been looked after."""
        now_s = time.monotonic()
        if now_s - self._told_at_s < _EVERY_S:
            return
        self._told_at_s = now_s
        sd_notify(f"EXTEND_TIMEOUT_USEC={_EXTENSION_S * 1_000_000}", f"STATUS=takes over machines: {done} of {of}")
