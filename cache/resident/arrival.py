"""An image that is made of its blob while that is being downloaded: nothing is read again, and nobody waits twice.

The frames are decoded as they arrive, into a staging like that of any other load. It becomes the image when who
downloads says that the digest holds; not a moment earlier, and never if that is not said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from cache.ramsnap import RamsnapDecoder
from cache.resident.directory import ImageDirectory
from cache.resident.loader import Loader
from cache.resident.room import Promise
from spec.digest import Digest
from spec.errors import OvmsError, Unsupported
from spec.oci import Descriptor
from spec.ramsnap import RamsnapHeader, RamsnapIndex, RamsnapLimits

_log = structlog.get_logger(__name__)

Publish = Callable[[Path, Digest, RamsnapHeader], Coroutine[Any, Any, None]]


class Arrival:
    """To be fed one blob, by threads, one call at a time: it is a ``BlobSink`` of ``cache.registry.sink``.

    What goes wrong with the image (no room for it, a damaged frame, a layer, which needs its parent first) does not
    fail the download: it is in ``error``, and who wants the image loads it from the store, or is told there.
    """

    def __init__(
        self, blob: Descriptor, loader: Loader, directory: ImageDirectory, publish: Publish, limits: RamsnapLimits
    ) -> None:
        """No I/O yet; on the event loop of the images. ``publish`` makes a finished staging the image of a digest."""
        self.error: OvmsError | None = None
        self._blob = blob
        self._loader = loader
        self._directory = directory
        self._publish = publish
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._decoder: RamsnapDecoder | None = None
        self._promise: Promise | None = None

    def feed(self, piece: bytes) -> None:
        """Decode the next bytes of the blob. Blocks while the processors are busy with what came before."""
        self._attempt(lambda: self._begun().feed(piece))

    def restart(self) -> None:
        """Begin again."""
        self.give_up()
        self.error = None

    def succeed(self) -> None:
        """The digest of what was fed holds: from here on the image is resident, unless there is an ``error``."""
        self._attempt(self._finish)
        self.give_up()

    def give_up(self) -> None:
        """Remove what was made and not published."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder.close()
            self._directory.discard(decoder.destination)
        promise, self._promise = self._promise, None
        if promise is not None:
            self._loop.call_soon_threadsafe(self._loader.forget, promise)

    def _attempt(self, step: Callable[[], None]) -> None:
        if self.error is not None:
            return
        try:
            step()
        except OvmsError as error:
            self.error = error
            _log.info("image not made while it arrived", digest=self._blob.digest, why=error.detail)
            self.give_up()

    def _begun(self) -> RamsnapDecoder:
        if self._decoder is None:
            self._decoder = RamsnapDecoder(
                self._directory.new_staging(),
                vouched=True,
                admit=self._admit,
                blob_bytes=self._blob.size,
                limits=self._limits,
            )
        return self._decoder

    def _admit(self, index: RamsnapIndex) -> None:
        if index.header.parent is not None:
            raise Unsupported("a layer is put over its parent when all of them are there")
        promise = Promise(self._loader.needed_bytes(index), self._begun().destination)
        self._on_loop(self._loader.promise(self._blob.content_digest, promise))
        self._promise = promise

    def _finish(self) -> None:
        decoder = self._begun()
        header = decoder.finish(self._blob.content_digest)
        self._on_loop(self._publish(decoder.destination, self._blob.content_digest, header))

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait, in this thread, for what only the event loop may do."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result()
