"""Whether the host has the memory that a start may come to need.

RAM files are sparse: a guest that has touched a tenth of its memory may touch the rest tomorrow, and where the tmpfs
is full then, the kernel ends the VMM with SIGBUS. So a start is admitted only if all RAM files can be filled. A file
that a snapshot froze still grows: tmpfs puts a page there when a clone reads a hole. What images of the store may take
is the business of :mod:`cache.resident`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread

from cache.available_memory import memory_available_bytes
from ovms_supervisor.instance.clone_memory import CloneMemory
from spec.errors import CapacityExceeded
from spec.sizes import format_size


@dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """Memory promised to one instance: files on the tmpfs that together may grow to ``size_bytes``."""

    size_bytes: int
    directory: Path

    def allocated_bytes(self) -> int:
        """What the files of the directory take already (blocks)."""
        try:
            return sum(entry.stat().st_blocks * 512 for entry in os.scandir(self.directory))
        except FileNotFoundError:
            return 0


class Capacity:
    """Promises memory of one tmpfs."""

    def __init__(self, tmpfs: Path, clones: CloneMemory) -> None:
        self.clones = clones
        """The memory that clones have to themselves: it is not on the tmpfs, yet of the same host."""
        self.unfilled_bytes = 0
        """Of all promises, when it was last looked."""
        self._tmpfs = tmpfs
        self._promised: set[Reservation] = set()
        self._turn = anyio.Lock()

    @property
    def promised_bytes(self) -> int:
        """What all live instances together may fill."""
        return sum(each.size_bytes for each in self._promised)

    async def reserve(self, size_bytes: int, directory: Path) -> Reservation:
        """Promise memory for files in ``directory``. Raises CapacityExceeded, with the figures in its fields.

        Who needs none, as clones of an image do, is neither refused nor made to wait.
        """
        if not size_bytes:
            return self.take_over(0, directory)
        async with self._turn:  # or two starts, of which one would fit, refuse each other
            reservation = self.take_over(size_bytes, directory)
            try:
                free_bytes, open_bytes = await self._look()
                if open_bytes > free_bytes:
                    raise CapacityExceeded(
                        f"{format_size(size_bytes)} are needed on {self._tmpfs}, where {format_size(free_bytes)} are "
                        f"free and {format_size(open_bytes - size_bytes)} are promised to other instances",
                        needed_bytes=size_bytes,
                        free_bytes=free_bytes,
                        promised_bytes=open_bytes - size_bytes,
                    )
            except BaseException:
                self.release(reservation)
                raise
            return reservation

    def take_over(self, size_bytes: int, directory: Path) -> Reservation:
        """Promise without looking: the memory is in use already."""
        reservation = Reservation(size_bytes, directory)
        if size_bytes:
            self._promised.add(reservation)
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Take a promise back; idempotent."""
        self._promised.discard(reservation)

    async def refresh(self) -> None:
        """Look how much of the promises has been filled meanwhile."""
        if self._promised or self.unfilled_bytes:
            await self._look()

    async def _look(self) -> tuple[int, int]:
        free_bytes, self.unfilled_bytes = await to_thread.run_sync(
            self._figures, tuple(self._promised), self.clones.figures().growth_bytes
        )
        return free_bytes, self.unfilled_bytes

    def _figures(self, promised: tuple[Reservation, ...], growth_bytes: int) -> tuple[int, int]:
        """Bytes that are free, and bytes of all promises that are not yet allocated."""
        figures = os.statvfs(self._tmpfs)
        free = min(figures.f_bavail * figures.f_frsize, memory_available_bytes() - growth_bytes)
        return free, sum(max(0, each.size_bytes - each.allocated_bytes()) for each in promised)
