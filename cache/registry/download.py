"""One blob into the store: streamed to a partial file while it is hashed, resumed, and published when it holds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from anyio import CapacityLimiter

from cache.blob_store import BlobStore
from cache.partial_blob import PartialBlob
from cache.registry.blob_stream import BlobStream
from cache.registry.piece_writer import PieceWriter
from cache.registry.progress import BlobProgress, Report, State, no_report
from cache.registry.retry import RetryPolicy
from cache.registry.sink import BlobSink, SinkFor, no_sink
from cache.threads import ended, finish_in_thread
from spec.digest import Digest
from spec.errors import (
    BlobNotFound,
    Corrupt,
    DigestMismatch,
    NoSpace,
    OvmsError,
    RegistryGarbage,
    RegistryUnreachable,
    SizeMismatch,
)
from spec.fault_points import reach
from spec.oci import Descriptor

T = TypeVar("T")

_POLL_S: Final = 0.1
"""Between looks at a blob that somebody else is downloading: nobody tells us when a process lets go of a lock."""
_REPORT_S: Final = 0.1
_WORTH_BYTES: Final = 64 * 1024
"""A connection that brought so much has not failed: the tries are counted anew."""
_SPOILT: Final = (NoSpace, DigestMismatch, SizeMismatch)
"""What makes a partial file worthless, or a burden."""


class BlobSource(Protocol):
    """Where a blob comes from: a repository, or a web server."""

    def open_blob(self, blob: Descriptor, start: int = 0) -> AbstractAsyncContextManager[BlobStream]:
        """Its bytes from ``start`` on; the stream's own ``start`` is 0 where that can't be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloads:
    """How the downloads of a pull are done."""

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    report: Report = no_report
    sink_for: SinkFor = no_sink


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a download came to, in bytes: neither if the blob was there."""

    network_bytes: int = 0
    resumed_bytes: int = 0
    """Found in a partial file."""


class Download:
    """The download of one blob. To be run once, in one task; several of the same blob may run at once."""

    def __init__(
        self, store: BlobStore, source: BlobSource, blob: Descriptor, how: Downloads, added: Callable[[Digest], object]
    ) -> None:
        """``added`` is told (in a thread) that the store has pinned the blob as fresh: see ``Store.adding``."""
        self._store, self._source, self._blob, self._how, self._added = store, source, blob, how, added
        self._partial = PartialBlob(store.partial_dir, blob)
        self._sink: BlobSink | None = None
        self._network_bytes = 0
        self._reported_s = 0.0

    async def run(self) -> Fetched:
        """Have the blob in the store. Cancelled or broken off, it leaves a partial file that the next one goes on from.

        Raises BlobNotFound, DigestMismatch, SizeMismatch, NoSpace, RegistryError and its kinds.
        """
        try:
            if not await self._acquire():
                self._tell("there", self._blob.size)
                return Fetched()
            self._sink = self._how.sink_for(self._blob)
            resumed = await self._complete()
        except _SPOILT:
            await self._settle(lambda: self._give_up(spoilt=True))
            raise
        except BaseException:
            await self._settle(lambda: self._give_up(spoilt=False))
            raise
        self._tell("done", self._blob.size)
        reach("pull.blob")
        return Fetched(self._network_bytes, resumed)

    # --- who does it --------------------------------------------------------------------------------------------------

    async def _acquire(self) -> bool:
        """Hold the partial file; False: the blob is there, perhaps because somebody else has just brought it."""
        while True:
            acquired = await self._in_thread(self._partial.acquire)
            if await self._is_there():
                await self._in_thread(self._partial.remove)
                return False
            if acquired:
                return True
            self._tell("waiting", 0)
            await asyncio.sleep(_POLL_S)

    async def _is_there(self) -> bool:
        """And is what it should be: whoever is told that a blob is damaged pulls it again."""
        if not self._store.has_blob(self._blob.content_digest):
            return False
        self._tell("checking", 0)
        stop = threading.Event()
        try:
            await self._in_thread(lambda: self._store.verify_blob(self._blob, stop), stop)
        except (BlobNotFound, Corrupt):
            return False
        return True

    # --- the bytes ----------------------------------------------------------------------------------------------------

    async def _complete(self) -> int:
        """Fill, check and publish; returns how many bytes of an earlier download were good for something."""
        self._tell("checking", 0)
        stop = threading.Event()
        await self._in_thread(lambda: self._partial.reread(self._feed, stop), stop)
        found = self._partial.size_bytes
        await self._fill()
        try:
            await self._in_thread(self._publish)
        except DigestMismatch:
            if not found:
                raise
            # What lay there for a while may have been damaged there: once more, with nothing of it.
            found = 0
            await self._in_thread(self._restart)
            await self._fill()
            await self._in_thread(self._publish)
        return found if self._network_bytes < self._blob.size else 0

    async def _fill(self) -> None:
        failed, from_start = 0, False
        while (at := self._partial.size_bytes) < self._blob.size:
            start = 0 if from_start else at
            opened = False
            try:
                async with self._source.open_blob(self._blob, start) as stream:
                    opened = True
                    if stream.start != self._partial.size_bytes:
                        await self._in_thread(self._restart)
                        at = 0
                    from_start = False
                    await self._receive(stream)
            except (RegistryGarbage, SizeMismatch):
                if not start:
                    raise
                from_start = True  # it makes nothing of a Range, or nonsense: that need not hold for the whole
            except RegistryUnreachable:
                if not opened:
                    raise  # the transport has tried often enough
                failed = 1 if self._partial.size_bytes - at >= _WORTH_BYTES else failed + 1
                wait = self._how.retry.wait_s(failed)
                if wait is None:
                    raise
                await asyncio.sleep(wait)

    async def _receive(self, stream: BlobStream) -> None:
        async with PieceWriter(lambda pieces: self._partial.append(pieces, self._feed), self._how.threads) as writer:
            at = stream.start
            async for chunk in stream:
                at += len(chunk)
                self._network_bytes += len(chunk)
                self._tell("fetching", at)
                await writer.add(chunk)

    def _feed(self, piece: bytes) -> None:
        if self._sink is not None:
            self._sink.feed(piece)

    def _restart(self) -> None:
        self._partial.restart()
        if self._sink is not None:
            self._sink.restart()

    def _publish(self) -> None:
        self._partial.check()
        self._store.take_file(self._partial.path, self._blob.content_digest)
        self._added(self._blob.content_digest)
        self._partial.remove()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.succeed()

    def _give_up(self, *, spoilt: bool) -> None:
        try:
            if spoilt:
                self._partial.remove()
            else:
                self._partial.keep()
        except OvmsError:
            self._partial.remove()
        finally:
            if self._sink is not None:
                self._sink.give_up()

    # --- around it ----------------------------------------------------------------------------------------------------

    async def _in_thread(self, job: Callable[[], T], stop: threading.Event | None = None) -> T:
        return await finish_in_thread(job, self._how.threads, stop)

    async def _settle(self, job: Callable[[], None]) -> None:
        """Run a job to its end, cancelled or not."""
        await ended(asyncio.ensure_future(self._in_thread(job)))

    def _tell(self, state: State, at_bytes: int) -> None:
        now = asyncio.get_running_loop().time()
        if state in ("there", "done") or now - self._reported_s >= _REPORT_S:
            self._reported_s = now
            self._how.report(BlobProgress(self._blob, state, at_bytes))
