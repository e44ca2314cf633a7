"""Whether an image fits: into the budget, and into what the tmpfs has left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cache.ramsnap.image_files import RAM_NAME
from spec.digest import Digest
from spec.errors import CapacityExceeded, NoSpace, OvmsError
from spec.sizes import format_size

_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True, eq=False)
class Promise:
    """Room for an image that is being loaded into ``staging``."""

    needed_bytes: int
    staging: Path

    def unwritten_bytes(self) -> int:
        """What is still to come."""
        try:
            written = (self.staging / RAM_NAME).stat().st_blocks * _BLOCK_BYTES
        except FileNotFoundError:
            written = 0
        return max(0, self.needed_bytes - written)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Figures of one moment, all in bytes."""

    used: int
    """By images that are here."""
    evictable: int
    """Of ``used``: by images that nobody refers to."""
    promised: int
    """To loads under way."""
    unwritten: int
    """Of ``promised``: not taken from the file system yet."""
    available: int
    """What the file system could still take."""
    budget: int | None

    def fits(self, needed: int) -> bool:
        """Whether so much more fits now."""
        return self._fits_budget(needed) and self._fits_file_system(needed)

    def check(self, needed: int, digest: Digest) -> None:
        """Raise CapacityExceeded or NoSpace, with the figures, if not even evicting all that is unused is enough."""
        remaining = needed - self.evictable
        if self._fits_budget(remaining) and self._fits_file_system(remaining):
            return
        kind: type[OvmsError] = NoSpace
        limit = f"{format_size(self.available)} are free"
        if not self._fits_budget(remaining):
            kind, limit = CapacityExceeded, f"the budget is {format_size(self.budget or 0)}"
        raise kind(
            f"the RAM image {digest} takes {format_size(needed)}; {limit}, images take {format_size(self.used)} "
            f"({format_size(self.evictable)} of it unused), loads under way {format_size(self.promised)}",
            needed_bytes=needed,
            budget_bytes=self.budget,
            available_bytes=self.available,
            used_bytes=self.used,
            evictable_bytes=self.evictable,
            promised_bytes=self.promised,
        )

    def _fits_budget(self, needed: int) -> bool:
        return self.budget is None or self.used + self.promised + needed <= self.budget

    def _fits_file_system(self, needed: int) -> bool:
        return self.unwritten + needed <= self.available
