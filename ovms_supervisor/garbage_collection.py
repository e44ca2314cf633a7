"""Python's garbage collector in a process that keeps millions of objects for days.

A full collection looks at every object: with thousands of machines that stops the event loop for seconds, to find next
to nothing, as what belongs to a machine lives as long as the machine. So what survives one is frozen, out of the sight
of the next. Now and then, when twice as much is frozen as was after the last time, everything is looked at again: the
cycles among objects that died since are found, and the price stays in proportion to what was made.
"""

from __future__ import annotations

import gc
from types import TracebackType
from typing import Literal, Self

_THRESHOLDS = (10_000, 20, 20)
"""Young objects before a first look, then how many of those before a second, and of these before a full one."""
_FEW = 200_000
"""Of so many frozen objects a full look takes some ten milliseconds: never mind."""


class FrozenSurvivors:
    """Holds for as long as the context lasts; one per process. Enter it when everything that lasts has been loaded."""

    def __init__(self, *, few: int = _FEW) -> None:
        self._few = few
        self._before: tuple[int, int, int] = (0, 0, 0)
        self._frozen_after_thorough = 0
        self._thorough = False

    def __enter__(self) -> Self:
        self._before = gc.get_threshold()
        gc.set_threshold(*_THRESHOLDS)
        gc.collect()
        gc.freeze()
        self._frozen_after_thorough = gc.get_freeze_count()
        gc.callbacks.append(self._on_collection)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.callbacks.remove(self._on_collection)
        gc.set_threshold(*self._before)
        gc.unfreeze()

    def _on_collection(self, phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        if info["generation"] != 2:
            return
        if phase == "start":
            self._thorough = gc.get_freeze_count() > max(self._few, 2 * self._frozen_after_thorough)
            if self._thorough:
                gc.unfreeze()
            return
        gc.freeze()
        if self._thorough:
            self._frozen_after_thorough = gc.get_freeze_count()
