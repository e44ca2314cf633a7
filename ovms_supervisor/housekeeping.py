"""Keeping house: which RAM images are resident and which may go, garbage of the store, and its size limit."""

from __future__ import annotations

from functools import partial
from typing import Final

import anyio
import structlog
from anyio.to_thread import run_sync

from cache.prune import prune, shrink
from cache.store import Store
from cache.unreferenced import Garbage
from ovms_supervisor.instance.host import Host
from spec.api import ImageInfo, PrunedItem, PruneReply, PruneRequest
from spec.digest import Digest, parse_digest
from spec.errors import BlobNotFound, InUse, OvmsError
from spec.sizes import format_size

_LOOK_EVERY_S: Final = 60.0
"""At the size of the store: other processes fill it, too."""

_log = structlog.get_logger(__name__)


class Housekeeping:
    """Of one daemon."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._grown = anyio.Event()

    async def images(self) -> list[ImageInfo]:
        """The resident images, the least recently used first, with the names of their artifacts."""
        references = await run_sync(_references, self._host.store)
        return [
            ImageInfo(
                digest=use.digest,
                references=references.get(use.digest, []),
                size_bytes=use.size_bytes,
                locked_bytes=use.locked_bytes,
                users=use.users,
            )
            for use in self._host.images.uses()
        ]

    async def free_image(self, digest: str) -> None:
        """Give the memory of a resident image back. Raises InvalidDigest, BlobNotFound, InUse."""
        await self._host.images.evict(parse_digest(digest))
        self._host.events.publish("image.freed", digest=digest)

    async def prune(self, request: PruneRequest) -> PruneReply:
        """Remove what nobody refers to (see cache.prune), and images that are resident for nobody.

        Raises CorruptStore, NoSpace, PermissionMissing.
        """
        work = partial(prune, self._host.store, everything=request.all, dry_run=request.dry_run)
        garbage = await run_sync(work)
        removed = [PrunedItem(what=each.what, size_bytes=each.size_bytes) for each in garbage]
        gone = {each.what for each in garbage}
        removed += await self._prune_images(gone, everything=request.all, dry_run=request.dry_run)
        if garbage and not request.dry_run:
            self._tell(garbage, "on request")
        return PruneReply(
            dry_run=request.dry_run, removed=removed, freed_bytes=sum(each.size_bytes for each in removed)
        )

    def grown(self) -> None:
        """Something was added to the store."""
        self._grown.set()

    async def run(self) -> None:
        """Keep the store within its limit, until cancelled; at once if there is none."""
        limit_bytes = self._host.settings.store_limit_bytes
        while limit_bytes:
            self._grown = anyio.Event()
            try:
                await self._keep_within(limit_bytes)
            except OvmsError as error:
                _log.warning("the store cannot be kept within its limit", why=str(error), code=error.code)
            with anyio.move_on_after(_LOOK_EVERY_S):
                await self._grown.wait()

    async def _keep_within(self, limit_bytes: int) -> None:
        store = self._host.store
        garbage = await run_sync(shrink, store, limit_bytes)
        if not garbage:
            return
        await self._prune_images({each.what for each in garbage}, everything=False, dry_run=False)
        self._tell(garbage, "the store's limit")
        left = await run_sync(store.size_bytes)
        if left > limit_bytes:
            _log.warning(
                "the store is over its limit with what has a name or is in use",
                size=format_size(left),
                limit=format_size(limit_bytes),
            )

    async def _prune_images(self, gone: set[str], *, everything: bool, dry_run: bool) -> list[PrunedItem]:
        """Free unused images whose blob has just gone, or is nowhere; with ``everything`` all that are unused."""
        removed: list[PrunedItem] = []
        for use in self._host.images.uses():
            there = self._host.store.has_blob(use.digest) and use.digest not in gone
            if use.users or (there and not everything):
                continue
            if not dry_run:
                try:
                    await self._host.images.evict(use.digest)
                except (BlobNotFound, InUse):  # somebody was faster
                    continue
            removed.append(PrunedItem(what=f"images/{use.digest}", size_bytes=use.size_bytes))
        return removed

    def _tell(self, garbage: list[Garbage], why: str) -> None:
        freed_bytes = sum(each.size_bytes for each in garbage)
        _log.info("store pruned", why=why, count=len(garbage), freed=format_size(freed_bytes))
        self._host.events.publish("store.pruned", cause=why, count=len(garbage), freed_bytes=freed_bytes)


def _references(store: Store) -> dict[Digest, list[str]]:
    """Names of the artifacts by the RAM snapshot that they have; damaged ones have none."""
    found: dict[Digest, list[str]] = {}
    for each in store.list():
        try:
            ramsnap = store.artifact(each.digest).ramsnap
        except OvmsError:
            continue
        if ramsnap is not None and each.name is not None:
            found.setdefault(ramsnap.content_digest, []).append(each.name)
    return found
