"""What machines take, looked at a few at a time: thousands at once would hold up everything else.

A round over all machines takes at most ten seconds, or longer where there are more than a thousand. The sums for
/metrics and the expectations of :mod:`ovms_supervisor.instance.clone_memory` are made of the latest sample of each.
"""

from __future__ import annotations

from typing import Final

import anyio
import structlog

from cache.available_memory import memory_available_bytes, memory_installed_bytes
from ovms_supervisor.config import Settings
from ovms_supervisor.instance.capacity import Capacity
from ovms_supervisor.instance.clone_memory import CloneFigures, CloneMemory
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.roster import Roster
from spec.errors import OvmsError
from spec.instance import MemoryMetrics, is_live

_log = structlog.get_logger(__name__)

_TICK_S: Final = 1.0
_TICKS_A_ROUND: Final = 10
_AT_ONCE: Final = (16, 100)
"""At least and at most; some ten microseconds each."""
_RESERVE_SHARE: Final = 0.02
"""Of the host's memory: not given to clones, whatever is expected of them."""


def clone_memory(settings: Settings) -> CloneMemory:
    """The count of clones' memory for a daemon."""
    return CloneMemory(
        budget_bytes=settings.clone_budget_bytes,
        reserve_bytes=int(memory_installed_bytes() * _RESERVE_SHARE),
        available_bytes=memory_available_bytes,
    )


class MemorySamples:
    """Belongs to the event loop."""

    def __init__(self, capacity: Capacity, roster: Roster) -> None:
        self._capacity = capacity
        self._roster = roster
        self._latest: dict[str, MemoryMetrics] = {}
        self._round: list[Instance] = []
        self._at_once = 0

    async def run(self) -> None:
        """Look, until cancelled. What goes wrong once is in the log, and no reason to look no more."""
        while True:
            await anyio.sleep(_TICK_S)
            try:
                self.tick()
                await self._capacity.refresh()
            except Exception:
                _log.exception("memory not looked at")

    def tick(self) -> None:
        """Look at the next few machines."""
        if not self._round:
            self._round = [each for each in self._roster.all() if is_live(each.state)]
            live = {each.id for each in self._round}
            self._latest = {key: value for key, value in self._latest.items() if key in live}
            self._at_once = min(max(_AT_ONCE[0], -(-len(self._round) // _TICKS_A_ROUND)), _AT_ONCE[1])
        for instance in self._round[: self._at_once]:
            self._look(instance)
        del self._round[: self._at_once]

    def sums(self) -> MemoryMetrics:
        """Of all machines that have been looked at and live."""
        latest = self._latest.values()
        return MemoryMetrics(
            total_bytes=sum(each.total_bytes for each in latest),
            shared_bytes=sum(each.shared_bytes for each in latest),
            private_bytes=sum(each.private_bytes for each in latest),
            locked_bytes=0,
        )

    def clones(self) -> CloneFigures:
        """Of the clones among them, with what is expected of them."""
        return self._capacity.clones.figures()

    def _look(self, instance: Instance) -> None:
        try:
            found = instance.memory()
        except OvmsError:
            found = None
        if found is None:
            self._latest.pop(instance.id, None)
            return
        self._latest[instance.id] = found
        if instance.seat is not None:
            self._capacity.clones.note(instance.seat, found.private_bytes)
