"""A snapshot of an instance: captured in its turn, stored while it runs on."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from pathlib import Path

from ovms_supervisor.clock import Stopwatch
from ovms_supervisor.instance.capture import Capture, Captured
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.life import Life
from ovms_supervisor.instance.owned import undone_always, undone_on_failure
from ovms_supervisor.instance.snapshot_events import SnapshotEvents
from ovms_supervisor.instance.storing import hold_layers, store
from spec.api import SnapshotReply
from spec.errors import InvalidReference
from spec.fault_points import reach
from spec.instance import InstanceState
from spec.reference import Reference, parse_reference, parse_source

_BARE_TAG = re.compile(r"[^/:@]+")


def snapshot_reference(instance: Instance, tag: str, artifact_name: str) -> Reference:
    """The name of a snapshot: a reference, or a bare tag that replaces the one of the instance's artifact.

    An instance that was started from a path or digest takes the name in its manifest. Raises InvalidReference.
    """
    if not _BARE_TAG.fullmatch(tag):
        reference = parse_reference(tag)
        if reference.digest is not None:
            raise InvalidReference(f"{tag!r}: a snapshot gets a name; its digest is not known beforehand")
        return reference
    source = parse_source(instance.record.manifest.ref)
    name = source.name if isinstance(source, Reference) else artifact_name
    return parse_reference(f"{name}:{tag}")


def names_registry(tag: str) -> bool:
    """Whether it is the caller who names a registry, and not only the instance's artifact. Raises InvalidReference."""
    return not _BARE_TAG.fullmatch(tag) and parse_reference(tag).registry is not None


async def snapshot(life: Life, reference: Reference) -> SnapshotReply:
    """Take a snapshot. If anything fails the machine goes on, and nothing is left of it."""
    instance, watch = life.instance, Stopwatch()
    events = SnapshotEvents(instance, reference)
    async with undone_always() as always, undone_on_failure() as undo:
        captured, directory = await life.perform(
            "snapshot", lambda: _capture(life, watch, always, undo), InstanceState.RUNNING, InstanceState.PAUSED
        )
        events.captured(captured)
        digest = await store(life, captured, directory, reference, watch, events)
    await instance.save()
    events.created(digest, captured.pause_ms)
    return SnapshotReply(
        snapshot_ref=digest, reference=str(reference), pause_ms=captured.pause_ms, phases=watch.phases_ms
    )


async def _capture(life: Life, watch: Stopwatch, always: AsyncExitStack, undo: AsyncExitStack) -> tuple[Captured, Path]:
    captured = await Capture(life, watch).run()
    undo.push_async_callback(life.instance.host.images.discard, captured.staging)
    layers = await hold_layers(life.instance, captured, always)
    reach("snapshot.captured")
    return captured, layers
