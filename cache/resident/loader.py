"""From a blob in the store to an image: room is made, then it is decoded and published."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError as Stopped
from functools import partial
from pathlib import Path

import structlog
from anyio import CapacityLimiter

from cache.ramsnap import BlobPath, Chain, read_chain
from cache.ramsnap.dense import dense_extents
from cache.resident.directory import ImageDirectory, Published
from cache.resident.entry import Entry
from cache.resident.load import Load
from cache.resident.room import Promise, Room
from cache.resident.shelf import Shelf
from cache.threads import finish_in_thread
from spec.digest import Digest
from spec.errors import CapacityExceeded, NoSpace
from spec.fault_points import reach
from spec.ramsnap import RamsnapIndex, RamsnapLimits

_log = structlog.get_logger(__name__)

_LOADS = 4
"""At a time: they share the processors, but each one has buffers of its own."""


class Loader:
    """Belongs to one event loop."""

    def __init__(
        self,
        directory: ImageDirectory,
        shelf: Shelf,
        chores: CapacityLimiter,
        *,
        budget_bytes: int | None,
        limits: RamsnapLimits,
        blob_path: BlobPath,
    ) -> None:
        self._directory = directory
        self._shelf = shelf
        self._chores = chores
        self._budget_bytes = budget_bytes
        self._limits = limits
        self._blob_path = blob_path
        self._loading = CapacityLimiter(_LOADS)
        self._making_room = asyncio.Lock()
        self._promises: set[Promise] = set()

    async def load(self, digest: Digest, blob: Path, load: Load) -> Published:
        """The work of a load: nothing of it is left unless it returns. While nobody waits, no other image gives way.

        Raises what :func:`cache.ramsnap.decode` does, CapacityExceeded, and CancelledError (of concurrent.futures) soon
        after ``load.stop`` is set.
        """
        read = partial(read_chain, digest, blob, self._blob_path, limits=self._limits)
        chain = await finish_in_thread(read, self._chores)
        promise = Promise(self._needed(chain.image_bytes, chain.layers[0].index), self._directory.new_staging())
        # A parent whose image is here already is copied, and kept from being evicted until then.
        below = next((self._shelf.take(each) for each in reversed(chain.parents) if each in self._shelf.entries), None)
        try:
            try:
                await self._make_room(digest, promise, load)
            except (CapacityExceeded, NoSpace):
                if below is None:
                    raise
                self._shelf.give_up(below)
                below = None
                await self._make_room(digest, promise, load)
            work = partial(self._decode, chain, below.image if below else None, promise.staging, load.stop)
            return await finish_in_thread(work, self._loading, load.stop)
        finally:
            if below is not None:
                self._shelf.give_up(below)
            self._promises.discard(promise)

    async def promise(self, digest: Digest, promise: Promise) -> None:
        """Keep room for an image that is made elsewhere, until :meth:`forget`. Raises CapacityExceeded, NoSpace."""
        await self._make_room(digest, promise, None)

    def needed_bytes(self, index: RamsnapIndex) -> int:
        """What the image of a blob without a parent takes at most."""
        return self._needed(index.payload_bytes, index)

    def _needed(self, payload_bytes: int, bottom: RamsnapIndex) -> int:
        """Huge pages take memory for the zeros in them, too."""
        return payload_bytes + (sum(dense_extents(bottom).values()) if self._directory.huge_pages else 0)

    def forget(self, promise: Promise) -> None:
        """Its room is taken, or not needed."""
        self._promises.discard(promise)

    def _decode(self, chain: Chain, below: Published | None, staging: Path, stop: threading.Event) -> Published:
        """In a thread."""
        image = (below.digest, below.directory) if below else None
        try:
            header = chain.decode(staging, below=image, limits=self._limits, stop=stop)
            if chain.parents:
                _log.info(
                    "image made of layers",
                    digest=chain.layers[-1].digest,
                    layers=len(chain.layers),
                    copied_bytes=below.occupied_bytes() if below else 0,
                )
            reach("load.decoded")
            published = self._directory.publish(staging, chain.layers[-1].digest, header)
            reach("load.published")
        except BaseException:
            self._directory.discard(staging)
            raise
        return published

    async def _make_room(self, digest: Digest, promise: Promise, load: Load | None) -> None:
        """Evict the least recently used images until the promise can be kept; then it counts. One load at a time."""
        async with self._making_room:
            while load is None or not load.stop.is_set():
                figures = partial(self._room, tuple(self._shelf.entries.values()), tuple(self._promises))
                room = await finish_in_thread(figures, self._chores)
                room.check(promise.needed_bytes, digest)
                if room.fits(promise.needed_bytes):
                    self._promises.add(promise)
                    return
                if load is not None and not load.awaited:
                    raise CapacityExceeded(f"no room is free for the RAM image {digest}, for which nobody waits")
                # None, if somebody took the last one up since the figures were taken: then the next ones say so.
                if (victim := self._shelf.least_recently_used()) is not None:
                    await self._shelf.evict(victim.image.digest)
        raise Stopped

    def _room(self, entries: tuple[Entry, ...], promises: tuple[Promise, ...]) -> Room:
        """In a thread."""
        taken = [(entry.references, entry.image.occupied_bytes()) for entry in entries]
        return Room(
            used=sum(size for _, size in taken),
            evictable=sum(size for references, size in taken if not references),
            promised=sum(promise.needed_bytes for promise in promises),
            unwritten=sum(promise.unwritten_bytes() for promise in promises),
            available=self._directory.available_bytes(),
            budget=self._budget_bytes,
        )
