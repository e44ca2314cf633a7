"""Capturing a machine at one point in time: the part of a snapshot for which the guest stands still.

Two ways, of which the driver knows which it can go::

    prepare → pause → save ─┬─ in place: resume → complete              the process goes on, on a new overlay
                            └─ else: restore a successor → retire       a clone of the snapshot goes on in its stead

In place also where the VMM cannot exchange the file of a disk, if a copy of the overlay can be had within the pause.
RAM that the machine owns is frozen by a hard link, whatever its size; of a private RAM the changed pages are copied,
and only they are stored as a rule (:mod:`ovms_supervisor.instance.layering`). Until the successor runs, everything can
be given up and the old process goes on; from then on there is no way back, and none is needed.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.to_thread import current_default_thread_limiter, run_sync

from cache.ramsnap import copy_image
from cache.threads import finish_in_thread
from ovms_supervisor.clock import Stopwatch
from ovms_supervisor.instance import shared_devices
from ovms_supervisor.instance.instance import NOT_RESUMED, Instance
from ovms_supervisor.instance.launch import files_of, note_isolation, record_of
from ovms_supervisor.instance.layering import Layering, layering
from ovms_supervisor.instance.life import Life
from ovms_supervisor.instance.overlay_copy import can_be_copied, copy_overlay
from ovms_supervisor.instance.overlays import NextOverlay
from ovms_supervisor.instance.owned import undone_on_failure
from ovms_supervisor.instance.record import Doing, VmRecord
from spec.compatibility import Compatibility
from spec.errors import OvmsError, VmmExited, WrongState
from spec.fault_points import reach
from spec.instance import InstanceState
from vmm.driver import Machine, Ram, Saved, SaveTarget, Vm
from vmm.sandbox.ownership import take_back

COPY_NICENESS: Final = 5

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """One point in time of a machine: ``ram``, ``staging/state/``, and the overlays that belong to it."""

    staging: Path
    compatibility: Compatibility
    lineage: str
    """Digest of the OCI manifest below the layers."""
    layers: tuple[Path, ...]
    copy: Path | None
    """The last of the layers, if it is a copy: the machine goes on as a change of what was below it before."""
    kernel_args: str
    succeeded: bool
    """The machine maps the captured RAM now."""
    layering: Layering | None
    """How to store the RAM, if not all of it."""
    ram: Path
    """The RAM, or of a layer at least the pages that changed, each at its place."""
    pause_ms: float


class Capture:
    """One capture of one instance; :meth:`run` it in the instance's turn."""

    def __init__(self, life: Life, watch: Stopwatch) -> None:
        self._life = life
        self._instance: Instance = life.instance
        self._watch = watch
        self._vm: Vm = self._instance.running_vm()
        self._machine: Machine = self._vm.machine
        self._generation = self._instance.record.generation + 1
        self._running = self._instance.state is InstanceState.RUNNING
        self._ram = self._instance.paths.ram(self._generation)
        self._image = self._instance.image.digest if self._instance.image else None
        """What the machine is a clone of."""
        self._overlay = NextOverlay.of(self._instance, self._machine, self._generation)
        self._frozen = self._overlay.frozen.path if self._overlay else None
        self._copy: Path | None = None
        """Of the overlay, where the machine goes on writing to the one that it has."""
        self._isolated = False
        self._standing = False
        self._pause_began = 0.0
        self._pause_ms = 0.0

    async def run(self) -> Captured:
        """Capture, and let the machine go on. Raises Vmm*, NoSpace, …; the machine then goes on as before."""
        record, images = self._instance.record, self._instance.host.images
        async with undone_on_failure() as undo:
            staging = await images.stage()
            undo.push_async_callback(images.discard, staging)
            undo.push_async_callback(self._discard_copy)
            in_place = await self._goes_in_place()
            async with undone_on_failure() as given_up:
                successor = await self._prepare(staging, given_up, in_place=in_place)
                reach("snapshot.prepared")
                saved = await self._save(staging, successor=successor is not None)
                reach("snapshot.saved")
                if successor is not None:
                    await self._restore(*successor, staging)
            # From here on there is no way back.
            with anyio.CancelScope(shield=True):
                if successor is not None:
                    await self._succeed(*successor)
                else:
                    await self._resume_in_place()
            ram, layers = staging / "ram", await self._layering(saved)
            if layers is not None and saved.changes is not None and successor is None:
                ram = saved.changes.copy  # nobody needs the rest
            elif successor is None:
                with self._watch.phase("complete"):
                    await saved.complete(ram)
            return Captured(
                staging=staging,
                compatibility=saved.compatibility,
                lineage=record.lineage,
                layers=(*record.pending_layers, *([self._copy] if self._copy else [])),
                copy=self._copy,
                kernel_args=self._machine.kernel_args,
                succeeded=successor is not None,
                layering=layers,
                ram=ram,
                pause_ms=self._pause_ms,
            )

    async def _prepare(self, staging: Path, given_up: AsyncExitStack, *, in_place: bool) -> tuple[Vm, VmRecord] | None:
        """Everything that needs no standing guest; the successor's process, unless the capture is in place."""
        with self._watch.phase("prepare"):
            given_up.push_async_callback(self._write_down, None)
            given_up.push_async_callback(self._go_on)
            await self._write_down(Doing(what="snapshot", overlay=self._overlay.disk.path if self._overlay else None))
            reach("snapshot.begun")
            if self._overlay is not None:
                given_up.push_async_callback(self._overlay.settle)
                await self._overlay.create()
            await run_sync(partial((staging / "state").mkdir, exist_ok=True))
            if in_place:
                return None
            given_up.push_async_callback(run_sync, partial(self._ram.unlink, missing_ok=True))
            if self._machine.ram.private:
                with self._watch.phase("copy"):
                    await self._copy_image()
                await run_sync(self._freeze, self._ram, staging)
            else:
                await run_sync(self._freeze, self._machine.ram.path, staging)
            return await self._spawn_successor(given_up)

    async def _goes_in_place(self) -> bool:
        """Whether the process goes on; then also whether on a new overlay, or on the one that it has."""
        if not self._machine.ram.private:
            return False
        features = (await self._instance.host.runtimes.reports())[self._instance.record.runtime.name].features
        if "snapshot-in-place" in features:
            return True
        if "snapshot-in-place-same-disk" not in features:
            return False
        if self._frozen is None:
            return True
        copy = self._instance.host.layout.storing / str(uuid.uuid4()) / "overlay.qcow2"
        if not await run_sync(can_be_copied, self._frozen, copy):
            await run_sync(copy.parent.rmdir)
            return False
        self._copy, self._overlay = copy, None
        return True

    async def _discard_copy(self) -> None:
        if self._copy is not None:
            await run_sync(partial(shutil.rmtree, self._copy.parent, ignore_errors=True))

    async def _layering(self, saved: Saved) -> Layering | None:
        if saved.changes is None or self._image is None:
            return None
        return await run_sync(layering, self._instance.host.store, self._image, saved.changes)

    async def _copy_image(self) -> None:
        """Before the pause, in which only the changed pages are put over it. Raises CapacityExceeded, NoSpace."""
        stop, capacity = threading.Event(), self._instance.host.capacity
        image = await run_sync(self._machine.ram.path.stat)
        capacity.release(await capacity.reserve(image.st_blocks * 512, self._instance.paths.memory))
        work = partial(copy_image, self._machine.ram.path, self._ram, niceness=COPY_NICENESS, stop=stop)
        await finish_in_thread(work, current_default_thread_limiter(), stop)

    async def _spawn_successor(self, given_up: AsyncExitStack) -> tuple[Vm, VmRecord]:
        machine = replace(
            self._machine,
            ram=Ram(path=self._ram, size_bytes=self._machine.ram.size_bytes, private=True),
            disks=self._overlay.disks if self._overlay else self._machine.disks,
        )
        driver = self._instance.host.driver(self._instance.record.runtime.name)
        self._isolated = await self._instance.host.isolation.available()
        vm = await driver.spawn(machine, files_of(self._instance, self._generation), incoming=True)
        given_up.push_async_callback(_end, vm)
        return vm, record_of(vm, self._generation)

    def _freeze(self, source: Path, staging: Path) -> None:
        """Names of the same file: ours, which outlives the staging, and the snapshot's."""
        if source != self._ram:
            if self._instance.record.isolation:
                take_back(source)  # the process that writes to it has it open
            os.link(source, self._ram)
        os.link(source, staging / "ram")

    async def _save(self, staging: Path, *, successor: bool) -> Saved:
        overlays = self._overlay.disks if self._overlay else ()
        image = self._ram if successor and self._machine.ram.private else None
        target = SaveTarget(state_dir=staging / "state", overlays=overlays, image=image)
        self._pause_began = time.monotonic()
        with self._watch.phase("pause"):
            if self._running:
                self._standing = True
                await self._vm.pause()
        reach("snapshot.paused")
        with self._watch.phase("save"):
            saved = await self._vm.save(target)
            if self._frozen is not None and self._copy is not None:
                await run_sync(copy_overlay, self._frozen, self._copy)
            if self._machine.devices:
                await run_sync(shared_devices.save, self._machine.devices, staging / "state")
        return saved

    async def _restore(self, successor: Vm, record: VmRecord, staging: Path) -> None:
        """The journal names the successor before it runs: from then on the next daemon, too, goes on with that one.

        Otherwise a daemon that dies in between would leave a guest that has gone on and is taken back in time.
        """
        with self._watch.phase("restore"):
            await successor.restore(staging / "state", resume=False)
            reach("snapshot.restored")
            overlay = self._overlay.disk.path if self._overlay else None
            await self._write_down(Doing(what="snapshot", overlay=overlay, successor=record))
            reach("snapshot.named")
            if self._running:
                await successor.resume()
        self._end_pause(successor)
        reach("snapshot.resumed")

    async def _succeed(self, successor: Vm, record: VmRecord) -> None:
        """The successor runs: the instance is its process now, and the old one is retired."""
        instance, old = self._instance, self._vm
        with self._watch.phase("retire"):
            instance.vm, instance.record.vm = successor, record
            if self._overlay is not None:
                self._overlay.note_switch()
            if self._isolated:
                with suppress(OvmsError):  # it ended meanwhile, or cannot be replaced any more
                    await note_isolation(instance, successor)
            await self._write_down(None)
            reach("snapshot.recorded")
            self._life.watch(successor)
            try:
                await _end(old)
            except OvmsError:
                _log.exception("the process before a snapshot does not end", instance=instance.id, pid=old.pid)
            if not self._machine.ram.private:
                await run_sync(partial(self._machine.ram.path.unlink, missing_ok=True))
            if instance.image is not None:
                digest, instance.image, instance.record.image = instance.image.digest, None, None
                await instance.host.images.release(digest)

    async def _resume_in_place(self) -> None:
        with self._watch.phase("resume"):
            await self._go_on()
            self._end_pause(self._vm)
        if self._overlay is not None:
            await self._overlay.settle()
        await self._write_down(None)

    async def _go_on(self) -> None:
        """Let the process that was paused go on. One that does not is not given up: it is paused."""
        if not self._standing:
            return
        self._standing = False
        try:
            await self._vm.resume()
        except VmmExited:
            raise  # the life of the instance is about to tell
        except OvmsError as error:
            self._instance.degrade(NOT_RESUMED, f"paused after a snapshot: {error.detail}")
            with suppress(WrongState):  # it is ending anyhow
                await self._instance.become(InstanceState.PAUSED, f"it did not go on after a snapshot: {error.detail}")
            raise

    def _end_pause(self, vm: Vm) -> None:
        """The guest stood still until its vCPUs went on; of one that was paused before, until the capture was done."""
        until = vm.resumed_at if self._running and vm.resumed_at is not None else time.monotonic()
        self._pause_ms = round((until - self._pause_began) * 1000, 3)

    async def _write_down(self, doing: Doing | None) -> None:
        self._instance.record.generation = self._generation
        self._instance.record.doing = doing
        await self._instance.save()


async def _end(vm: Vm) -> None:
    await vm.stop(guest_grace_s=0)
