"""How many parked clones are wanted: between the least and the most, as many as starts have come at once lately."""

from __future__ import annotations

from collections import deque
from typing import Final

SLOT_S: Final = 10.0
WINDOW_S: Final = 60.0


class Demand:
    """Counts the starts of one artifact, also those that no clone served. Times are of the monotonic clock."""

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._slots: deque[tuple[int, int]] = deque(maxlen=int(WINDOW_S / SLOT_S))
        """Number and count of each slot that had a start, oldest first."""

    def note(self, now_s: float) -> None:
        """One more start."""
        slot = int(now_s // SLOT_S)
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1] = (slot, self._slots[-1][1] + 1)
        else:
            self._slots.append((slot, 1))

    def peak(self, now_s: float) -> int:
        """The most starts that came in any slot of the window: a pool of that size would have served the burst."""
        self._forget(now_s)
        return max((count for _, count in self._slots), default=0)

    def wanted(self, least: int, usual: int, most: int, now_s: float) -> int:
        """How many clones are to be parked; ``usual`` as long as the window since the order has not passed."""
        peak = self.peak(now_s)
        if now_s - self._since_s < WINDOW_S:
            peak = max(peak, usual)
        return min(max(peak, least), most)

    def changes_in_s(self, now_s: float) -> float | None:
        """After what time less may be wanted without anything happening; None: never."""
        self._forget(now_s)
        ends = [(slot + 1) * SLOT_S + WINDOW_S for slot, _ in self._slots]
        if now_s - self._since_s < WINDOW_S:
            ends.append(self._since_s + WINDOW_S)
        return max(0.0, min(ends) - now_s) if ends else None

    def _forget(self, now_s: float) -> None:
        while self._slots and (self._slots[0][0] + 1) * SLOT_S + WINDOW_S <= now_s:
            self._slots.popleft()
