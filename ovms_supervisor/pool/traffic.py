"""Whether starts are under way: a burst must not be slowed by the refill of what it has just emptied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

_CALM_S: Final = 0.01
"""Between the starts of a burst less time passes than this."""
_PATIENCE_S: Final = 0.25
"""Under steady load there is no calm: then a clone is parked now and then all the same."""


class Traffic:
    """Counts starts that are under way."""

    def __init__(self) -> None:
        self._under_way = 0
        self._begun = 0
        self._none = anyio.Event()
        self._none.set()

    @contextmanager
    def start(self) -> Iterator[None]:
        """A start for as long as the context lasts."""
        self._begun += 1
        self._under_way += 1
        if self._none.is_set():
            self._none = anyio.Event()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._none.set()

    async def calm(self) -> None:
        """Return when no start has been under way for a moment, or patience is at its end."""
        if not self._under_way and not self._begun:
            return
        with anyio.move_on_after(_PATIENCE_S):
            while True:
                await self._none.wait()
                self._begun = 0
                await anyio.sleep(_CALM_S)
                if not self._begun:
                    return
