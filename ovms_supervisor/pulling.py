"""Pulls of a daemon: one at a time of each reference, told as events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from weakref import WeakValueDictionary

from anyio.to_thread import run_sync

from cache.artifact import Artifact
from cache.registry.access import open_registries
from cache.registry.download import Downloads
from cache.registry.index_choice import HostPlatform
from cache.registry.pull import Pulled, PullOptions, pull
from cache.registry.sink import SinkFor, no_sink
from cache.store import Store
from cache.trust.gate import Gate
from cache.trust.on_pull import PulledSignatures
from ovms_supervisor.config import Settings
from ovms_supervisor.events import EventHub
from ovms_supervisor.registries import access_of
from ovms_supervisor.residency import Residency
from ovms_supervisor.transfer_events import TransferEvents
from spec.api import PullPolicy, PullReply
from spec.digest import Digest
from spec.errors import ArtifactNotFound
from spec.reference import Reference


class Pulling:
    """Belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        events: EventHub,
        platform: Callable[[], Awaitable[HostPlatform]],
        gate: Gate,
        residency: Residency,
    ) -> None:
        """No I/O."""
        self._settings, self._store, self._events = settings, store, events
        self._platform, self._residency = platform, residency
        self._gate = gate
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def find(self, reference: Reference, policy: PullPolicy, *, ram_snapshot: bool) -> Digest:
        """The artifact of a reference with a registry, pulled if the policy says so, to be started at once.

        ``ram_snapshot``: whether its RAM is to be used, so that the rules for that count already at the pull.

        Raises ArtifactNotFound and what pulling raises.
        """
        if policy == "never":
            return (await self._found(reference)).digest
        signatures = self._signatures(reference, None, ram_snapshot=ram_snapshot)
        return (await self._turn(reference, policy, self._residency.sink_for, signatures)).digest

    async def pull(
        self,
        reference: Reference,
        policy: PullPolicy = "always",
        *,
        resident: bool = False,
        verify: bool | None = None,
    ) -> Pulled:
        """Have the artifact in the store, and with ``resident`` its RAM image in memory, made while it arrives.

        Its signatures come with it. ``verify``: whether the policy is asked before blobs are fetched; None: as
        configured. Raises PolicyRejected, InvalidPolicy, and what ``cache.registry.pull`` raises, and
        ``ResidentImages.lease``; then the artifact may be there.
        """
        began_s = time.monotonic()
        signatures = self._signatures(reference, verify, ram_snapshot=True)
        pulled = await self._turn(reference, policy, self._residency.sink_for if resident else no_sink, signatures)
        size_bytes = await self._residency.ensure(pulled.digest) if resident else None
        if size_bytes is None:
            return pulled
        return replace(pulled, resident_ms=(time.monotonic() - began_s) * 1000, resident_bytes=size_bytes)

    def _signatures(self, reference: Reference, verify: bool | None, *, ram_snapshot: bool) -> PulledSignatures:
        asked = self._settings.verify_on_pull if verify is None else verify
        return PulledSignatures(self._store, self._gate, reference, verify=asked, ram_snapshot=ram_snapshot)

    async def _turn(
        self, reference: Reference, policy: PullPolicy, sink_for: SinkFor, signatures: PulledSignatures
    ) -> Pulled:
        turn = self._turns.setdefault(str(reference), asyncio.Lock())
        async with turn:  # who waited for the same finds it there, or has little left to do
            if policy == "missing":
                try:
                    return await self._found(reference)
                except ArtifactNotFound:
                    pass
            return await self._pull(reference, sink_for, signatures)

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

    async def _pull(self, reference: Reference, sink_for: SinkFor, signatures: PulledSignatures) -> Pulled:
        telling = TransferEvents(self._events, "pull", reference)
        options = PullOptions(
            platform=self._platform,
            downloads=Downloads(report=telling.report, sink_for=sink_for),
            approve=signatures.approve,
            begin=telling.begin,
        )
        with telling.failures():
            async with open_registries(access_of(self._settings)) as registries, signatures:
                options = replace(options, registries=registries)
                pulled = await pull(self._store, registries.repository(reference), reference, options)
                await signatures.keep(pulled.digest)
        telling.done(
            digest=pulled.digest,
            network_bytes=pulled.network_bytes,
            resumed_bytes=pulled.resumed_bytes,
            there_bytes=pulled.there_bytes,
            total_ms=pulled.total_ms,
            mb_per_s=pulled.mb_per_s,
        )
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
        resident_ms=pulled.resident_ms,
        resident_bytes=pulled.resident_bytes,
    )
