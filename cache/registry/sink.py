"""The hook for those who work on a blob while it is being downloaded, such as a decoder of RAM snapshots.

What they make of it is worth nothing before :meth:`BlobSink.succeed`: until then nobody knows whose bytes these are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from spec.oci import Descriptor


class BlobSink(Protocol):
    """Is fed one blob. Its methods are called one after the other, from threads, never from the event loop.

    The calls are ``(feed* restart)* feed* (succeed | give_up)``: exactly one of the last two ends it. What an earlier
    download left on disk is fed too, so the first piece always is the blob's beginning.
    """

    def feed(self, piece: bytes) -> None:
        """The next piece, of any length. May block, which holds the download back.

        An exception fails the download (and :meth:`give_up` follows).
        """

    def restart(self) -> None:
        """Forget what was fed: the next piece is the blob's beginning again."""

    def succeed(self) -> None:
        """All of it was fed; digest and size hold, and the blob is in the store."""

    def give_up(self) -> None:
        """It failed or was cancelled: forget what was fed. Must not raise."""


SinkFor = Callable[[Descriptor], BlobSink | None]
"""The sink for a blob that is about to be downloaded; None: nobody wants it. Not asked for blobs that are there."""


def no_sink(_: Descriptor) -> BlobSink | None:
    """Nobody wants any."""
    return None
