"""How late the event loop is: what everybody on it pays for a call that blocks."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

import structlog

_INTERVAL_S = 0.25
_KEPT = 40  # the last ten seconds
_WARN_S = 0.1

_log = structlog.get_logger(__name__)


class LoopLag:
    """Sets a timer again and again and sees how late it rings. An async context manager."""

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=_KEPT)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def recent_s(self) -> float:
        """The worst delay of the last ten seconds."""
        return max(self._late, default=0.0)

    async def __aenter__(self) -> LoopLag:
        self._set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer:
            self._timer.cancel()

    def _set(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + _INTERVAL_S
        self._timer = loop.call_at(due, self._ring, due)

    def _ring(self, due: float) -> None:
        late_s = asyncio.get_running_loop().time() - due
        self._late.append(late_s)
        if late_s > _WARN_S:
            _log.warning("the event loop was held up", ms=round(late_s * 1000))
        self._set()
