"""From a captured machine to an artifact: compressed and stored at low priority, while the machine runs on.

What is to be stored has names of its own (the staging directory on the tmpfs, hard links of the overlays on the
root), so the instance may be stopped, or removed, meanwhile.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from anyio.to_thread import run_sync

from cache.ramsnap import EncodedRamsnap, encode, read_header
from cache.snapshot_artifact import store_snapshot
from ovms_supervisor.clock import Stopwatch, utc_now
from ovms_supervisor.instance.capture import Captured
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.life import Life
from spec.digest import Digest, parse_digest
from spec.reference import Reference

_NICENESS: Final = 10


async def hold_layers(instance: Instance, captured: Captured, undo: AsyncExitStack) -> Path:
    """Give the overlays of a capture names of their own in a new directory, which ``undo`` removes."""
    directory = instance.host.layout.storing / str(uuid.uuid4())
    undo.push_async_callback(run_sync, partial(shutil.rmtree, directory, ignore_errors=True))
    await run_sync(_link, captured.layers, directory)
    return directory


def _link(layers: tuple[Path, ...], directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True)
    for number, layer in enumerate(layers):
        os.link(layer, directory / f"layer-{number}.qcow2")


async def store(life: Life, captured: Captured, directory: Path, reference: Reference, watch: Stopwatch) -> Digest:
    """Store a capture and name it; its RAM stays resident. Returns the digest of the OCI manifest.

    Raises NoSpace, BlobNotFound, …; the capture's staging is then still the caller's.
    """
    instance, host = life.instance, life.instance.host
    with watch.phase("encode"):
        blob = directory / "ramsnap"
        encoded = await _encode(captured, blob)
    with watch.phase("store"):
        digest = await run_sync(_store, instance, captured, directory, encoded, reference)
    with watch.phase("adopt"):
        header = await run_sync(read_header, host.store.blob_path(encoded.digest))
        image = await host.images.adopt(captured.staging, encoded, header)
    await run_sync(host.store.pin, digest)  # the next snapshot's base, whatever becomes of its name
    if not life.promise(partial(run_sync, host.store.unpin, digest)):
        await run_sync(host.store.unpin, digest)
    # The machine maps that very file if it has become a clone of its own snapshot; else nobody uses the image yet.
    if not captured.succeeded or not life.take_image(image):
        await host.images.release(image.digest)
    stored = set(captured.layers)
    instance.record.lineage = digest
    instance.record.pending_layers = [layer for layer in instance.record.pending_layers if layer not in stored]
    return digest


async def _encode(captured: Captured, blob: Path) -> EncodedRamsnap:
    stop = threading.Event()
    work = partial(
        encode,
        captured.staging / "ram",
        captured.staging / "state",
        captured.compatibility,
        blob,
        created=utc_now(),
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
            overlays=[directory / f"layer-{number}.qcow2" for number in range(len(captured.layers))],
            reference=reference,
            memory_bytes=record.memory_bytes,
            cpus=record.cpus,
            kernel_args=captured.kernel_args,
            mlock_required=record.mlock_required,
        )
