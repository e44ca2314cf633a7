"""Which images are here, coming and leaving, so that each digest is in one hand at a time.

A digest is in one of three tables, or in none: ``entries`` (here, with its references), loads (somebody makes it, and
others wait), leaving (it is being removed, and others wait). Nothing here knows how an image is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError as Stopped
from functools import partial
from typing import Any

from anyio import CapacityLimiter

from cache.resident.directory import ImageDirectory, Published
from cache.resident.entry import Entry
from cache.resident.load import Load
from cache.threads import finish_in_thread
from spec.digest import Digest
from spec.errors import BlobNotFound, Conflict, InUse

Work = Callable[[Load], Coroutine[Any, Any, Published]]


class Shelf:
    """Belongs to one event loop."""

    def __init__(self, directory: ImageDirectory, chores: CapacityLimiter) -> None:
        self.entries: dict[Digest, Entry] = {}
        self._directory = directory
        self._chores = chores
        self._loads: dict[Digest, Load] = {}
        self._leaving: dict[Digest, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._clock = 0
        self.closed = False

    async def close(self) -> None:
        """Stop the loads, wait for everything under way, unlock what is here."""
        self.closed = True
        for load in self._loads.values():
            load.stop.set()
        while self._tasks:
            await asyncio.wait(self._tasks)
        for entry in self.entries.values():
            async with entry.pinning:
                await finish_in_thread(entry.unpin, self._chores)

    def put(self, image: Published) -> Entry:
        """An image that is here now, without references."""
        self.entries[image.digest] = entry = Entry(image)
        self._touch(entry)
        return entry

    def get(self, digest: Digest) -> Entry:
        """The entry of an image that is here. Raises BlobNotFound."""
        entry = self.entries.get(digest)
        if entry is None:
            raise BlobNotFound(f"no image of {digest} is resident", digest=digest)
        return entry

    def take(self, digest: Digest) -> Entry:
        """The entry of an image that is here, with one more reference for the caller. Raises BlobNotFound."""
        entry = self.get(digest)
        entry.references += 1
        return entry

    def give_up(self, entry: Entry) -> None:
        """Take a reference back."""
        entry.references -= 1
        self._touch(entry)

    def least_recently_used(self) -> Entry | None:
        """Of those without references."""
        unused = (entry for entry in self.entries.values() if not entry.references)
        return min(unused, key=lambda entry: entry.last_used, default=None)

    async def acquire(self, digest: Digest, work: Work) -> Entry:
        """The entry with one more reference for the caller, made by ``work`` if it is neither here nor coming.

        Raises Conflict when closed, and what the work raises (that of the load which was joined).
        """
        while True:
            if self.closed:
                raise Conflict("the images are closed")
            if (entry := self.entries.get(digest)) is not None:
                entry.references += 1
                return entry
            if (leaving := self._leaving.get(digest)) is not None:
                await leaving.wait()
                continue
            load = self._loads.get(digest)
            if load is not None and load.stop.is_set():  # everybody left it: wait until it is gone, then start afresh
                await load.ended()
                continue
            if load is None:
                self._loads[digest] = load = Load()
                self._spawn(self._run(digest, load, work))
            return await load.wait(self.give_up)

    def begin(self, digest: Digest, work: Work) -> None:
        """Let ``work`` make an image that nobody waits for yet, unless it is here, coming or leaving."""
        if not self.closed and not any(digest in table for table in (self.entries, self._loads, self._leaving)):
            self._loads[digest] = load = Load()
            self._spawn(self._run(digest, load, work))

    async def evict(self, digest: Digest) -> None:
        """Unlock and remove an image. Raises BlobNotFound, InUse, HostLimit."""
        entry = self.get(digest)
        if entry.references:
            raise InUse(f"the image of {digest} has {entry.references} users", digest=digest)
        del self.entries[digest]
        self._leaving[digest] = asyncio.Event()
        # In a task of its own: once begun it is finished, whatever becomes of the caller.
        await asyncio.shield(self._spawn(self._remove(entry)))

    async def _run(self, digest: Digest, load: Load, work: Work) -> None:
        """In a task of its own: a waiter's cancellation reaches the work through ``load.stop`` only."""
        outcome: Published | Exception = Conflict("the images are closed")
        try:
            outcome = await work(load)
        except Stopped:
            pass
        except Exception as error:
            outcome = error
        finally:
            del self._loads[digest]
            if isinstance(outcome, Exception):
                load.fail(outcome)
            else:
                load.succeed(self.put(outcome))

    async def _remove(self, entry: Entry) -> None:
        digest = entry.image.digest
        try:
            await finish_in_thread(entry.unpin, self._chores)
            await finish_in_thread(partial(self._directory.remove, digest), self._chores)
        finally:
            self._leaving.pop(digest).set()

    def _touch(self, entry: Entry) -> None:
        self._clock += 1
        entry.last_used = self._clock

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
