"""The resident images of a daemon: each loaded once, verified, counted, and evicted only when nobody refers to it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import structlog
from anyio import CapacityLimiter

from cache.mlock import raise_lock_limit
from cache.ramsnap import BlobPath, EncodedRamsnap
from cache.resident.arrival import Arrival
from cache.resident.directory import ImageDirectory, Published
from cache.resident.entry import Entry
from cache.resident.load import Load
from cache.resident.loader import Loader
from cache.resident.shelf import Shelf
from cache.statfs import is_tmpfs
from cache.threads import finish_in_thread
from spec.digest import Digest
from spec.errors import BlobNotFound, Conflict, InternalError, InvalidInput, MlockLimit, OvmsError, Unsupported
from spec.instance import Degradation
from spec.oci import Descriptor
from spec.ramsnap import DEFAULT_LIMITS, RamsnapHeader, RamsnapLimits

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_CHORES = 4
"""Threads for what is short: locking, evicting, looking."""


def _no_parents(digest: Digest) -> Path:
    raise BlobNotFound(f"no blob of {digest} is at hand", digest=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentImage:
    """An image as one user of it sees it; good for as long as that user's reference."""

    digest: Digest
    directory: Path
    ram: Path
    state_dir: Path
    header: RamsnapHeader
    locked_bytes: int
    """By the kernel's count."""
    degraded: list[Degradation]
    """What this user asked for and did not get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentFigures:
    """Totals: images, bytes that their files take (what tmpfs says), bytes locked (what smaps said when locking)."""

    images: int
    resident_bytes: int
    locked_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentUse:
    """An image as an operator sees it."""

    digest: Digest
    size_bytes: int
    """What its files take now."""
    locked_bytes: int
    users: int


class ResidentImages:
    """One per daemon; owns ``image_dir``, but for directories in it whose names are not its own.

    ``preload``: true, all pages of the image are brought in and mapped before the lease begins; false, the image is
    decoded into tmpfs all the same (a VMM can map nothing else), but pages that the host has swapped out since stay
    there until a guest touches them. ``mlock_required`` implies it, and keeps the pages from being swapped.
    """

    def __init__(
        self,
        image_dir: Path,
        *,
        mlock: Literal["required", "best-effort"],
        budget_bytes: int | None = None,
        limits: RamsnapLimits = DEFAULT_LIMITS,
        blob_path: BlobPath = _no_parents,
        standing: Sequence[Degradation] = (),
    ) -> None:
        """No I/O. ``mlock``: whether memory that must be locked and can't be is an error or a degradation.

        ``budget_bytes``: what all images may take together; None: as much as the file system has. ``blob_path``: where
        the parents of layers are; by default none is there. ``standing``: what every
        user of an image is to be told.
        """
        self._mlock = mlock
        self._limits = limits
        self._directory = ImageDirectory(image_dir)
        self._chores = CapacityLimiter(_CHORES)
        self._shelf = Shelf(self._directory, self._chores)
        self._loader = Loader(
            self._directory,
            self._shelf,
            self._chores,
            budget_bytes=budget_bytes,
            limits=limits,
            blob_path=blob_path,
        )
        self._standing = list(standing)

    async def open(self) -> None:
        """Remove what a dead daemon left half made; take over the images it completed (see cache.resident.directory).

        Raises PermissionMissing, NoSpace, HostLimit.
        """
        for image in await self._chore(self._directory.open):
            self._shelf.put(image)
        await self._chore(raise_lock_limit)
        if not await self._chore(partial(is_tmpfs, self._directory.path)):
            detail = f"{self._directory.path} is not on a tmpfs: pages of RAM images may have to be read from a disk"
            self._standing.append(Degradation(code="image_dir.not_tmpfs", detail=detail))

    async def close(self) -> None:
        """Stop loads, wait for everything under way, unlock. The files stay, for the VMMs and the next daemon."""
        await self._shelf.close()

    @asynccontextmanager
    async def lease(
        self, digest: Digest, blob: Path, *, mlock_required: bool, preload: bool
    ) -> AsyncIterator[ResidentImage]:
        """The image of a ramsnap blob, loaded if need be, for as long as the context lasts.

        Any number of callers at the same time share one load. Raises what :func:`cache.ramsnap.decode` does, and
        CapacityExceeded, NoSpace, MlockLimit (if the policy is ``required``), Conflict (when closed).
        """
        entry = await self._shelf.acquire(digest, partial(self._loader.load, digest, blob))
        try:
            yield await self._prepared(entry, mlock_required=mlock_required, preload=preload)
        finally:
            self._shelf.give_up(entry)

    def prefetch(self, digest: Digest, blob: Path) -> None:
        """Begin to load an image that is likely to be wanted; nobody waits for it, and a failure is only logged.

        It takes what room there is: no other image is evicted for it, unless somebody comes to wait for it.
        """

        async def load(load: Load) -> Published:
            try:
                return await self._loader.load(digest, blob, load)
            except OvmsError as error:
                _log.warning("image not loaded ahead", digest=digest, why=error.detail)
                raise

        self._shelf.begin(digest, load)

    async def retain(self, digest: Digest, *, mlock_required: bool = False, preload: bool = False) -> ResidentImage:
        """One more reference to an image that is here, until :meth:`release`; prepared as by :meth:`lease`.

        After a restart of the daemon no image is locked any more: say here again what is required.
        Raises BlobNotFound, MlockLimit, Conflict.
        """
        entry = self._shelf.take(digest)
        try:
            return await self._prepared(entry, mlock_required=mlock_required, preload=preload)
        except BaseException:
            self._shelf.give_up(entry)
            raise

    async def release(self, digest: Digest) -> None:
        """Give back a reference of :meth:`retain` or :meth:`adopt`. Without any the image stays, but may be evicted."""
        entry = self._shelf.get(digest)
        if not entry.references:
            raise InternalError(f"the image of {digest} was released more often than retained")
        self._shelf.give_up(entry)

    async def evict(self, digest: Digest) -> None:
        """Unlock and remove an image. Raises BlobNotFound, InUse, HostLimit."""
        await self._shelf.evict(digest)

    @property
    def staging_dir(self) -> Path:
        """Where :meth:`stage` makes its directories."""
        return self._directory.staging_dir

    async def stage(self) -> Path:
        """A new directory on the file system of the images, with an empty ``state/``: for ``ram`` and device state.

        Ends with :meth:`adopt` or :meth:`discard`. Raises NoSpace, PermissionMissing.
        """
        return await self._chore(self._directory.stage)

    async def adopt(self, staging: Path, encoded: EncodedRamsnap, header: RamsnapHeader) -> ResidentImage:
        """Make a staging the image of the blob that was encoded from it, with a reference for the caller.

        If that image is here already, the staging is dropped (a VM that has its files mapped keeps them). The memory is
        in use already, so the budget does not refuse it; later loads have to do with less. When it raises
        (CorruptRamsnap: the staging does not hold what the header says), the staging is still the caller's.
        """
        self._check_staging(staging)
        return self._view(await self._take_over(staging, encoded.digest, header), [])

    def arrival(self, blob: Descriptor) -> Arrival:
        """For who downloads a ramsnap blob: fed with it, the image is resident as soon as its digest is known to hold.

        Without a reference: who wants the image takes a :meth:`lease` then, as for any other.
        """

        async def publish(staging: Path, digest: Digest, header: RamsnapHeader) -> None:
            self._shelf.give_up(await self._take_over(staging, digest, header))

        return Arrival(blob, self._loader, self._directory, publish, self._limits)

    async def discard(self, staging: Path) -> None:
        """Remove a staging; nothing happens if it is gone."""
        self._check_staging(staging)
        await self._chore(partial(self._directory.discard, staging))

    def uses(self) -> list[ResidentUse]:
        """The images that are here, the least recently used first."""
        return [
            ResidentUse(
                digest=entry.image.digest,
                size_bytes=entry.image.occupied_bytes(),
                locked_bytes=entry.figures.locked_bytes,
                users=entry.references,
            )
            for entry in sorted(self._shelf.entries.values(), key=lambda entry: entry.last_used)
        ]

    def header(self, digest: Digest) -> RamsnapHeader | None:
        """That of the blob of an image that is here."""
        entry = self._shelf.entries.get(digest)
        return entry.image.header if entry else None

    def figures(self) -> ResidentFigures:
        """The totals now."""
        entries = self._shelf.entries.values()
        return ResidentFigures(
            images=len(entries),
            resident_bytes=sum(entry.image.occupied_bytes() for entry in entries),
            locked_bytes=sum(entry.figures.locked_bytes for entry in entries),
        )

    async def _take_over(self, staging: Path, digest: Digest, header: RamsnapHeader) -> Entry:
        """Make a staging the image of a digest, with a reference; drop it if the image is here already."""

        async def publish(_load: Load) -> Published:
            return await self._chore(partial(self._directory.publish, staging, digest, header))

        entry = await self._shelf.acquire(digest, publish)
        try:
            await self.discard(staging)  # it is gone, unless the image was here or being loaded
        except BaseException:
            self._shelf.give_up(entry)
            raise
        return entry

    async def _prepared(self, entry: Entry, *, mlock_required: bool, preload: bool) -> ResidentImage:
        """Pin the pages as asked, once for all users; each one is told what it did not get."""
        degraded: list[Degradation] = []
        async with entry.pinning:
            if self._shelf.closed:
                raise Conflict("the images are closed")
            if mlock_required and not entry.locked:
                try:
                    await self._pin(entry, lock=True)
                except MlockLimit as error:
                    if self._mlock == "required":
                        raise
                    degraded.append(Degradation(code="mlock.unavailable", detail=error.detail))
            if preload and not entry.mapped:
                try:
                    await self._pin(entry, lock=False)
                except Unsupported as error:
                    degraded.append(Degradation(code="preload.unavailable", detail=error.detail))
        return self._view(entry, degraded)

    async def _pin(self, entry: Entry, *, lock: bool) -> None:
        stop = threading.Event()
        await finish_in_thread(partial(entry.pin, lock=lock, stop=stop), self._chores, stop)

    def _view(self, entry: Entry, degraded: list[Degradation]) -> ResidentImage:
        image = entry.image
        return ResidentImage(
            digest=image.digest,
            directory=image.directory,
            ram=image.ram,
            state_dir=image.state_dir,
            header=image.header,
            locked_bytes=entry.figures.locked_bytes,
            degraded=[*self._standing, *degraded],
        )

    def _check_staging(self, staging: Path) -> None:
        if not self._directory.owns_staging(staging):
            raise InvalidInput(f"{staging} is no staging directory of the images", path=str(staging))

    async def _chore(self, job: Callable[[], T]) -> T:
        return await finish_in_thread(job, self._chores)
