"""Pushes of a daemon, told as events."""

from __future__ import annotations

import msgspec
from anyio.to_thread import run_sync

from cache.registry.access import open_registries
from cache.registry.push import Pushed, push
from cache.store import Store
from ovms_supervisor.config import Settings
from ovms_supervisor.events import EventHub
from ovms_supervisor.registries import access_of
from ovms_supervisor.transfer_events import TransferEvents
from spec.api import PushReply, SnapshotReply
from spec.digest import Digest, hex_of
from spec.errors import OvmsError
from spec.reference import DigestSource, Reference


class Pushing:
    """Belongs to one event loop."""

    def __init__(self, settings: Settings, store: Store, events: EventHub) -> None:
        self._settings, self._store, self._events = settings, store, events

    async def push(self, source: Reference | DigestSource, reference: Reference) -> Pushed:
        """Store an artifact of the local store in a registry. Raises what resolving and pushing raise."""
        telling = TransferEvents(self._events, "push", reference)
        with telling.failures():
            digest = await run_sync(self._store.resolve, source)
            async with open_registries(access_of(self._settings)) as registries:
                repository = registries.repository(reference)
                pushed = await push(
                    self._store, digest, repository, reference, report=telling.report, begin=telling.begin
                )
        reply = reply_of(pushed)
        telling.done(
            digest=reply.digest,
            sent_bytes=reply.sent_bytes,
            there_bytes=reply.there_bytes,
            mounted_bytes=reply.mounted_bytes,
            total_ms=reply.total_ms,
            mb_per_s=reply.mb_per_s,
        )
        return pushed

    async def push_snapshot(self, made: SnapshotReply, reference: Reference) -> SnapshotReply:
        """Push a snapshot that has been stored. Raises what pushing raises, and says that it is here all the same."""
        try:
            pushed = await self.push(DigestSource(hex_of(Digest(made.snapshot_ref))), reference)
        except OvmsError as error:
            fields = {**error.fields, "snapshot_ref": made.snapshot_ref, "reference": made.reference}
            raise type(error)(
                f"the snapshot is here as {made.reference} ({made.snapshot_ref}), but could not be pushed: "
                f"{error.detail}",
                remedy=f"{error.remedy} Then push it: ovm push {made.reference}".strip(),
                **fields,
            ) from error
        return msgspec.structs.replace(made, pushed=reply_of(pushed))


def reply_of(pushed: Pushed) -> PushReply:
    """What the API says of it."""
    return PushReply(
        reference=str(pushed.reference),
        status="pushed",
        digest=pushed.digest,
        subject=pushed.subject,
        signatures=pushed.signatures,
        sent_bytes=pushed.sent_bytes,
        there_bytes=pushed.there_bytes,
        mounted_bytes=pushed.mounted_bytes,
        total_ms=pushed.total_ms,
        mb_per_s=pushed.mb_per_s,
    )
