"""Pulls of a daemon: one at a time of each reference, told as events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakValueDictionary

from anyio.to_thread import run_sync

from cache.artifact import Artifact
from cache.registry.access import open_registries
from cache.registry.download import Downloads
from cache.registry.index_choice import HostPlatform
from cache.registry.progress import BlobProgress
from cache.registry.pull import Pulled, PullOptions, pull
from cache.registry.sink import SinkFor, no_sink
from cache.store import Store
from ovms_supervisor.config import Settings
from ovms_supervisor.events import EventHub
from ovms_supervisor.registries import access_of
from spec import media_types
from spec.api import PullPolicy, PullReply
from spec.digest import Digest
from spec.errors import ArtifactNotFound, OvmsError
from spec.reference import Reference

_EVERY_S: Final = 1.0
"""Between two events of a pull: the hub keeps only so many."""


class Pulling:
    """Belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        events: EventHub,
        platform: Callable[[], Awaitable[HostPlatform]],
        sink_for: SinkFor = no_sink,
    ) -> None:
        """``sink_for``: who works on blobs while they are downloaded."""
        self._settings, self._store, self._events = settings, store, events
        self._platform, self._sink_for = platform, sink_for
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def find(self, reference: Reference, policy: PullPolicy) -> Digest:
        """The artifact of a reference with a registry, pulled if the policy says so.

        Raises ArtifactNotFound and what pulling raises.
        """
        return (await self._found(reference) if policy == "never" else await self.pull(reference, policy)).digest

    async def pull(self, reference: Reference, policy: PullPolicy = "always") -> Pulled:
        """Have the artifact in the store. Raises what ``cache.registry.pull`` raises."""
        turn = self._turns.setdefault(str(reference), asyncio.Lock())
        async with turn:  # who waited for the same finds it there, or has little left to do
            if policy == "missing":
                try:
                    return await self._found(reference)
                except ArtifactNotFound:
                    pass
            return await self._pull(reference)

    async def _found(self, reference: Reference) -> Pulled:
        def look() -> Artifact:
            return self._store.artifact(self._store.resolve(reference))

        artifact = await run_sync(look)
        return Pulled(
            reference=reference,
            digest=artifact.digest,
            index=None,
            network_bytes=0,
            resumed_bytes=0,
            there_bytes=artifact.total_bytes,
            blobs=len(artifact.blobs),
            total_ms=0.0,
        )

    async def _pull(self, reference: Reference) -> Pulled:
        telling = _Telling(self._events, reference)
        options = PullOptions(
            platform=self._platform,
            downloads=Downloads(report=telling.report, sink_for=self._sink_for),
            begin=telling.begin,
        )
        try:
            async with open_registries(access_of(self._settings)) as registries:
                pulled = await pull(self._store, registries.repository(reference), reference, options)
        except asyncio.CancelledError:
            telling.failed("cancelled", "")
            raise
        except OvmsError as error:
            telling.failed(error.detail, error.code)
            raise
        telling.done(pulled)
        return pulled


def reply_of(pulled: Pulled) -> PullReply:
    """What the API says of it."""
    return PullReply(
        reference=str(pulled.reference),
        status="pulled",
        digest=pulled.digest,
        index=pulled.index,
        network_bytes=pulled.network_bytes,
        resumed_bytes=pulled.resumed_bytes,
        there_bytes=pulled.there_bytes,
        total_ms=pulled.total_ms,
        mb_per_s=pulled.mb_per_s,
    )


class _Telling:
    """The events of one pull: ``pull.progress`` now and then, at the end ``pull.done`` or ``pull.failed``."""

    def __init__(self, events: EventHub, reference: Reference) -> None:
        self._events = events
        self._always: dict[str, Any] = {"reference": str(reference)}
        self._blobs: dict[str, BlobProgress] = {}
        self._told_s = 0.0

    def begin(self, artifact: Artifact) -> None:
        self._always["digest"] = artifact.digest
        self._blobs = {each.digest: BlobProgress(each, "waiting", 0) for each in artifact.blobs}
        self._tell()

    def report(self, progress: BlobProgress) -> None:
        self._blobs[progress.blob.digest] = progress
        if asyncio.get_running_loop().time() - self._told_s >= _EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._told_s = asyncio.get_running_loop().time()
        self._events.publish(
            "pull.progress",
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
                for each in self._blobs.values()
            ],
        )

    def done(self, pulled: Pulled) -> None:
        self._events.publish(
            "pull.done",
            **{**self._always, "digest": pulled.digest},
            network_bytes=pulled.network_bytes,
            resumed_bytes=pulled.resumed_bytes,
            there_bytes=pulled.there_bytes,
            total_ms=pulled.total_ms,
            mb_per_s=pulled.mb_per_s,
        )

    def failed(self, why: str, code: str) -> None:
        self._events.publish("pull.failed", cause=why, **self._always, code=code)
