"""How far a transfer is, as events: ``push.progress`` now and then, at the end ``push.done`` or ``push.failed``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

from cache.artifact import Artifact
from cache.registry.progress import BlobProgress
from cache.registry.pull import wanted_of
from ovms_supervisor.events import EventHub
from spec import media_types
from spec.errors import OvmsError
from spec.reference import Reference

_EVERY_S: Final = 1.0
"""Between two events of a transfer: the hub keeps only so many."""
_MOST_BLOBS: Final = 64
"""In one event, whatever a manifest lists; the others come with the next."""


class TransferEvents:
    """The events of one transfer."""

    def __init__(self, events: EventHub, kind: Literal["pull", "push"], reference: Reference) -> None:
        self._events = events
        self._kind = kind
        self._always: dict[str, Any] = {"reference": str(reference)}
        self._blobs: dict[str, BlobProgress] = {}
        self._untold: dict[str, BlobProgress] = {}
        """Those that have changed since they were told of."""
        self._told_s = 0.0

    def begin(self, artifact: Artifact) -> None:
        """What is going to be transferred."""
        self._always["digest"] = artifact.digest
        self._blobs = {each.digest: BlobProgress(each, "waiting", 0) for each in wanted_of(artifact)}
        self._untold = dict(self._blobs)
        self._tell()

    def report(self, progress: BlobProgress) -> None:
        """How far one of the blobs is."""
        self._blobs[progress.blob.digest] = self._untold[progress.blob.digest] = progress
        if asyncio.get_running_loop().time() - self._told_s >= _EVERY_S:
            self._tell()

    def done(self, **figures: Any) -> None:
        """The end, as it should be."""
        self._events.publish(f"{self._kind}.done", **{**self._always, **figures})

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Tell of the block's end, if it is none that was wanted."""
        try:
            yield
        except asyncio.CancelledError:
            self._failed("cancelled", "")
            raise
        except OvmsError as error:
            self._failed(error.detail, error.code)
            raise

    def _failed(self, why: str, code: str) -> None:
        self._events.publish(f"{self._kind}.failed", cause=why, **self._always, code=code)

    def _tell(self) -> None:
        self._told_s = asyncio.get_running_loop().time()
        told = [self._untold.pop(digest) for digest in [*self._untold][:_MOST_BLOBS]]
        self._events.publish(
            f"{self._kind}.progress",
            **self._always,
            at_bytes=sum(each.at_bytes for each in self._blobs.values()),
            size_bytes=sum(each.blob.size for each in self._blobs.values()),
            blobs=[
                {
                    "digest": each.blob.digest,
                    "title": each.blob.annotations.get(media_types.ANNOTATION_TITLE, ""),
                    "state": each.state,
                    "at_bytes": each.at_bytes,
                    "size_bytes": each.blob.size,
                }
                for each in told
            ],
        )
