"""The memory that clones have to themselves: what they take, what they may come to take, and whether one more fits.

A clone begins with a few megabytes and grows with every page it writes. Nobody knows how far, but clones of one image
are alike: one more is expected to come to what the others came to. A start is refused when what is expected of all
clones together is more than the host has available, since the alternative is the kernel's choice of a victim.

All of it is arithmetic, but for one read of /proc/meminfo, and that is shared by a burst of starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from spec.digest import Digest
from spec.errors import CapacityExceeded
from spec.sizes import MIB, format_size

UNKNOWN_BYTES: Final = 8 * MIB
"""Expected of a clone as long as none of its image was looked at."""
_MARGIN: Final = 1.25
"""What is expected, over what was measured: the latest look may be seconds old, and no two clones are quite alike."""
PARKED_BYTES: Final = 2 * MIB
"""Expected of a clone that is parked: it does not grow before it is claimed, and gives way to who needs memory."""
_AVAILABLE_FOR_S: Final = 0.05
_REMEMBERED_IMAGES: Final = 1024
_WEIGHT_OF_THE_LATEST: Final = 0.2


@dataclass(slots=True, eq=False)
class Seat:
    """One clone's place in the count."""

    image: Digest
    parked: bool = False
    private_bytes: int = 0
    """By the latest sample."""
    peak_bytes: int = 0


@dataclass(slots=True)
class _Kin:
    """All clones of one image: sums, so that a start does not look at each of thousands."""

    seats: set[Seat] = field(default_factory=set)
    private_bytes: int = 0
    peak_bytes: int = 0
    sampled: int = 0
    """How many have been looked at yet."""
    parked: int = 0
    parked_bytes: int = 0
    """Of ``private_bytes``, what parked clones have."""
    ended_bytes: float = 0.0
    """What those that have ended came to: a mean that forgets."""

    @property
    def expected_bytes(self) -> int:
        """What one of them is expected to come to."""
        living = self.peak_bytes / self.sampled if self.sampled else 0.0
        return int(_MARGIN * max(living, self.ended_bytes)) or UNKNOWN_BYTES

    @property
    def growth_bytes(self) -> int:
        """What those that live are expected to take besides."""
        return max(0, self.expected_bytes * (len(self.seats) - self.parked) - (self.private_bytes - self.parked_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneFigures:
    """Of all clones together, in bytes."""

    clones: int
    private_bytes: int
    """By the latest samples."""
    growth_bytes: int
    """What they are expected to take besides."""
    budget_bytes: int


class CloneMemory:
    """Belongs to the event loop."""

    def __init__(self, *, budget_bytes: int, reserve_bytes: int, available_bytes: Callable[[], int]) -> None:
        """``reserve_bytes`` of what ``available_bytes()`` says are not given away."""
        self._budget_bytes = budget_bytes
        self._reserve_bytes = reserve_bytes
        self._ask = available_bytes
        self._asked_at = float("-inf")
        self._available_bytes = 0
        self._images: dict[Digest, _Kin] = {}

    def admit(self, image: Digest, *, promised_bytes: int = 0, parked: bool = False) -> Seat:
        """A place for one more clone; ``promised_bytes`` of memory are to be filled by others yet.

        Raises CapacityExceeded, with the figures in its fields.
        """
        self._check(image, PARKED_BYTES if parked else self.expected_bytes(image), promised_bytes)
        return self.take_over(image, parked=parked)

    def unpark(self, seat: Seat, *, promised_bytes: int = 0) -> None:
        """A parked clone is to go on, and to grow as others do. Raises CapacityExceeded; then it stays parked."""
        if not seat.parked:
            return
        self._check(seat.image, max(0, self.expected_bytes(seat.image) - seat.private_bytes), promised_bytes)
        kin = self._kin(seat.image)
        seat.parked = False
        if seat in kin.seats:
            kin.parked -= 1
            kin.parked_bytes -= seat.private_bytes

    def _check(self, image: Digest, needed: int, promised_bytes: int) -> None:
        figures = self.figures()
        taken = figures.private_bytes + figures.growth_bytes
        one_more = f"one more clone of {image[:19]}… is expected to take {format_size(needed)}"
        growth = f"{figures.clones} clones are expected to take {format_size(figures.growth_bytes)} more"
        if taken + needed > self._budget_bytes:
            raise CapacityExceeded(
                f"{one_more}; {growth} than the {format_size(figures.private_bytes)} that they take, and the budget of "
                f"clones is {format_size(self._budget_bytes)}",
                remedy="Stop instances or unpark clones, or raise clone_budget in the configuration.",
                needed_bytes=needed,
                private_bytes=figures.private_bytes,
                growth_bytes=figures.growth_bytes,
                budget_bytes=self._budget_bytes,
                clones=figures.clones,
            )
        available = self._available() - self._reserve_bytes
        if needed + figures.growth_bytes + promised_bytes > available:
            raise CapacityExceeded(
                f"{one_more}; {growth} than they do, {format_size(promised_bytes)} are promised to others, and "
                f"{format_size(max(0, available))} of memory can be given away",
                remedy="Stop instances or unpark clones, remove resident images, or start it on another host.",
                needed_bytes=needed,
                available_bytes=available,
                growth_bytes=figures.growth_bytes,
                promised_bytes=promised_bytes,
                clones=figures.clones,
            )

    def take_over(self, image: Digest, *, parked: bool = False) -> Seat:
        """A place without looking: the clone is there already."""
        seat, kin = Seat(image, parked), self._kin(image)
        kin.seats.add(seat)
        kin.parked += parked
        return seat

    def leave(self, seat: Seat) -> None:
        """A clone has ended; what it came to is remembered for its image. Idempotent."""
        kin = self._kin(seat.image)
        if seat not in kin.seats:
            return
        kin.seats.discard(seat)
        kin.private_bytes -= seat.private_bytes
        if seat.parked:
            kin.parked -= 1
            kin.parked_bytes -= seat.private_bytes
        elif seat.peak_bytes:
            kin.peak_bytes -= seat.peak_bytes
            kin.sampled -= 1
            weight = _WEIGHT_OF_THE_LATEST if kin.ended_bytes else 1.0
            kin.ended_bytes += weight * (seat.peak_bytes - kin.ended_bytes)

    def note(self, seat: Seat, private_bytes: int) -> None:
        """A sample of one clone; of one that has left, nothing is noted."""
        kin = self._kin(seat.image)
        if seat not in kin.seats or private_bytes <= 0:
            return
        kin.private_bytes += private_bytes - seat.private_bytes
        if seat.parked:  # which says nothing about what it will come to
            kin.parked_bytes += private_bytes - seat.private_bytes
            seat.private_bytes = private_bytes
            return
        kin.sampled += not seat.peak_bytes
        kin.peak_bytes += max(0, private_bytes - seat.peak_bytes)
        seat.private_bytes = private_bytes
        seat.peak_bytes = max(seat.peak_bytes, private_bytes)

    def expected_bytes(self, image: Digest) -> int:
        """What one clone of an image is expected to come to."""
        known = self._images.get(image)
        return known.expected_bytes if known else UNKNOWN_BYTES

    def figures(self) -> CloneFigures:
        """The sums of now."""
        kin = [each for each in self._images.values() if each.seats]
        return CloneFigures(
            clones=sum(len(each.seats) for each in kin),
            private_bytes=sum(each.private_bytes for each in kin),
            growth_bytes=sum(each.growth_bytes for each in kin),
            budget_bytes=self._budget_bytes,
        )

    def _kin(self, image: Digest) -> _Kin:
        kin = self._images.pop(image, None) or _Kin()
        self._images[image] = kin  # the most recent last
        if len(self._images) > _REMEMBERED_IMAGES:
            oldest = next((digest for digest, each in self._images.items() if not each.seats), None)
            if oldest is not None:
                del self._images[oldest]
        return kin

    def _available(self) -> int:
        now = time.monotonic()
        if now - self._asked_at > _AVAILABLE_FOR_S:
            self._available_bytes, self._asked_at = self._ask(), now
        return self._available_bytes
