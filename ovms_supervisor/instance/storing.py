"""From a captured machine to an artifact: compressed and stored at low priority, while the machine runs on.

What is to be stored has names of its own (the staging directory on the tmpfs, hard links of the overlays on the
root), so the instance may be stopped, or removed, meanwhile.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.to_thread import run_sync

from cache.ramsnap import EncodedRamsnap, encode, read_header
from cache.snapshot_artifact import store_snapshot
from ovms_supervisor.clock import Stopwatch, utc_now
from ovms_supervisor.instance.capture import Captured
from ovms_supervisor.instance.claims import claim
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.life import Life
from ovms_supervisor.instance.snapshot_events import SnapshotEvents
from spec.digest import Digest, parse_digest
from spec.errors import OvmsError
from spec.fault_points import reach
from spec.reference import Reference

_NICENESS: Final = 10

_log = structlog.get_logger(__name__)


async def hold_layers(instance: Instance, captured: Captured, undo: AsyncExitStack) -> Path:
    """Give the overlays of a capture names of their own in a new directory, which ``undo`` removes."""
    directory = instance.host.layout.storing / str(uuid.uuid4())
    undo.push_async_callback(run_sync, partial(shutil.rmtree, directory, ignore_errors=True))
    if captured.copy is not None:
        undo.push_async_callback(run_sync, partial(shutil.rmtree, captured.copy.parent, ignore_errors=True))
    await run_sync(_link, captured.layers, directory)
    return directory


def _link(layers: tuple[Path, ...], directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True)
    for number, layer in enumerate(layers):
        os.link(layer, directory / f"layer-{number}.qcow2")


async def store(
    life: Life, captured: Captured, directory: Path, reference: Reference, watch: Stopwatch, events: SnapshotEvents
) -> Digest:
    """Store a capture and name it, and keep its RAM resident. Returns the digest of the OCI manifest.

    The image of a layer takes as much memory as a whole one. It is made of its parent's afterwards; a start waits for
    it.
    Raises NoSpace, BlobNotFound, …; the capture's staging is then still the caller's.
    """
    with watch.phase("encode"):
        encoded = await _encode(captured, directory / "ramsnap", events.encoded)
    reach("snapshot.encoded")
    with watch.phase("store"):
        digest = await run_sync(_store, life.instance, captured, directory, encoded, reference)
        await _remember(life, captured, digest)
        if captured.copy is None:
            await _build_on(life, captured, digest)
    reach("snapshot.stored")
    if captured.layering is not None and not captured.succeeded:
        images, blob_path = life.instance.host.images, life.instance.host.store.blob_path
        await images.discard(captured.staging)
        images.prefetch(encoded.digest, blob_path(encoded.digest))
        return digest
    with watch.phase("adopt"):
        await _keep_resident(life, captured, encoded)
    reach("snapshot.resident")
    return digest


async def _remember(life: Life, captured: Captured, digest: Digest) -> None:
    """It was made here, and the policy may admit it for that. What can't be written down needs a signature."""
    try:
        await run_sync(life.instance.host.gate.note_made_here, digest, parse_digest(captured.lineage))
    except OvmsError as error:
        _log.exception("a snapshot is stored, but not known as made here", digest=digest)
        life.instance.degrade("trust.not_recorded", f"its snapshot is not known as made here: {error.detail}")


async def _build_on(life: Life, captured: Captured, digest: Digest) -> None:
    """The new artifact is the base of the next snapshot, whatever becomes of its name."""
    instance, record = life.instance, life.instance.record
    await run_sync(claim, instance.host.store, instance.paths, {parse_digest(record.manifest.digest), digest})
    record.lineage = digest
    record.pending_layers = [layer for layer in record.pending_layers if layer not in captured.layers]


async def _keep_resident(life: Life, captured: Captured, encoded: EncodedRamsnap) -> None:
    """Make the staging the resident image. The artifact is there already: without it, the first clone loads it."""
    images = life.instance.host.images
    try:
        header = await run_sync(read_header, life.instance.host.store.blob_path(encoded.digest))
        image = await images.adopt(captured.staging, encoded, header)
    except OvmsError:
        _log.exception("a snapshot is stored, but not resident", digest=encoded.digest)
        await images.discard(captured.staging)
        return
    # The machine maps that very file if it has become a clone of its own snapshot; else nobody uses the image yet.
    if not captured.succeeded or not life.take_image(image):
        await images.release(image.digest)


async def _encode(captured: Captured, blob: Path, progress: Callable[[int, int], None]) -> EncodedRamsnap:
    stop = threading.Event()
    work = partial(
        encode,
        captured.ram,
        captured.staging / "state",
        captured.compatibility,
        blob,
        created=utc_now(),
        changes=captured.layering.changes if captured.layering else None,
        progress=progress,
        niceness=_NICENESS,
        stop=stop,
    )
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_set_when_cancelled, stop)
        try:
            encoded = await run_sync(work)
        except Exception as error:  # to be raised as it is, not in a group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return encoded


async def _set_when_cancelled(stop: threading.Event) -> None:
    """A thread cannot be cancelled; it can be told."""
    try:
        await anyio.sleep_forever()
    finally:
        stop.set()


def _store(
    instance: Instance, captured: Captured, directory: Path, encoded: EncodedRamsnap, reference: Reference
) -> Digest:
    store, record = instance.host.store, instance.record
    with store.adding() as added:
        store.take_file(directory / "ramsnap", encoded.digest)
        added.append(encoded.digest)
        return store_snapshot(
            store,
            store.artifact(parse_digest(captured.lineage)),
            ramsnap=encoded,
            parents=captured.layering.parents if captured.layering else (),
            overlays=[directory / f"layer-{number}.qcow2" for number in range(len(captured.layers))],
            reference=reference,
            memory_bytes=record.memory_bytes,
            cpus=record.cpus,
            kernel_args=captured.kernel_args,
            mlock_required=record.mlock_required,
        )
