"""One resident image as its owner keeps it: how many use it, and what holds its pages in RAM."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from cache.host_errors import host_errors
from cache.mlock import ImageMapping, MappingFigures
from cache.resident.directory import Published
from spec.errors import MlockLimit, Unsupported

_NOTHING = MappingFigures(resident_bytes=0, locked_bytes=0)


@dataclass(slots=True, eq=False)
class Entry:
    """The counters belong to the event loop; :meth:`pin` and :meth:`unpin` block, one at a time (``pinning``)."""

    image: Published
    references: int = 0
    last_used: int = 0
    """A tick of the owner's clock."""
    pinning: asyncio.Lock = field(default_factory=asyncio.Lock)
    mapped: bool = False
    """Its pages were brought in ahead."""
    locked: bool = False
    """They are locked, too."""
    figures: MappingFigures = _NOTHING
    """The kernel's, taken after the latest change."""
    _mapping: ImageMapping | None = None

    def pin(self, *, lock: bool, stop: threading.Event) -> None:
        """Bring all pages of the image in; with ``lock``, so that they stay. Nothing has changed when it raises.

        Raises MlockLimit (the limit is too low, or the kernel's figures don't show what was locked), Unsupported (an
        old kernel), HostLimit, FileMissing, concurrent.futures.CancelledError.
        """
        with host_errors(self.image.ram):
            mapping = self._mapping or ImageMapping(self.image.ram)
        try:
            figures = _locked(mapping, stop) if lock else _populated(mapping, stop)
        except BaseException:
            if self._mapping is None:
                mapping.close()
            elif lock:
                mapping.unlock()
            raise
        self._mapping, self.figures = mapping, figures
        self.mapped, self.locked = True, lock

    def unpin(self) -> None:
        """Let go of all pages. Idempotent."""
        mapping, self._mapping = self._mapping, None
        self.mapped, self.locked, self.figures = False, False, _NOTHING
        if mapping is not None:
            mapping.close()


def _populated(mapping: ImageMapping, stop: threading.Event) -> MappingFigures:
    mapping.populate(stop)
    return mapping.figures()


def _locked(mapping: ImageMapping, stop: threading.Event) -> MappingFigures:
    mapping.lock()
    try:
        populated = mapping.populate(stop)
    except Unsupported as error:
        raise MlockLimit(error.detail) from error
    figures = mapping.figures()
    if figures.locked_bytes < populated:
        raise MlockLimit(
            f"{populated} bytes of the image were locked, but the kernel counts {figures.locked_bytes}",
            needed_bytes=populated,
            locked_bytes=figures.locked_bytes,
        )
    return figures
