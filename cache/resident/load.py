"""One load of an image, and everybody who waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from cache.resident.entry import Entry
from spec.errors import InternalError, OvmsError


class Load:
    """Belongs to its event loop. It ends once, by :meth:`succeed` or :meth:`fail`.

    A waiter that is cancelled leaves the load to the others; the last one to leave stops it.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        """Set when nobody waits any more: what the work looks at."""
        self._ended = asyncio.Event()
        self._waiters = 0
        self._entry: Entry | None = None
        self._error: Exception | None = None

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for it now."""
        return self._waiters > 0

    async def wait(self, give_up: Callable[[Entry], None]) -> Entry:
        """The image, with a reference for the caller. Raises the error of the load, each waiter one of its own.

        ``give_up`` takes back the reference of a waiter that is cancelled just when the load succeeds.
        """
        self._waiters += 1
        try:
            await self._ended.wait()
        except asyncio.CancelledError:
            self._waiters -= 1
            if self._entry is not None:
                give_up(self._entry)
            elif not self._waiters:
                self.stop.set()
            raise
        if self._entry is None:
            raise _own(self._error)
        return self._entry

    async def ended(self) -> None:
        """Return when it has ended, however; without taking part."""
        await self._ended.wait()

    def succeed(self, entry: Entry) -> None:
        """Give each waiter a reference. (A waiter may still be cancelled before it runs: see :meth:`wait`.)"""
        entry.references += self._waiters
        self._entry = entry
        self._ended.set()

    def fail(self, error: Exception) -> None:
        """Tell each waiter."""
        self._error = error
        self._ended.set()


def _own(error: Exception | None) -> Exception:
    """The same error once more: one object raised in several tasks would mix up their tracebacks."""
    if not isinstance(error, OvmsError):
        raised: Exception = InternalError(f"loading an image: {error!r}")
    else:
        raised = type(error)(error.detail, remedy=error.remedy, **error.fields)
    raised.__cause__ = error
    return raised
