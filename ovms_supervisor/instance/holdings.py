"""What a live instance holds of the host, and how each thing is given back.

Each function promises to give something back, *before* it is taken: the promises go on the exit stack of the
instance's life and are kept once, in reverse order, also for what was never made. A daemon that takes over an
instance makes the same promises for what it finds.
"""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from anyio import to_thread

from ovms_supervisor.instance.capacity import Reservation
from ovms_supervisor.instance.clone_memory import Seat
from ovms_supervisor.instance.host import Host
from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.layout import InstancePaths


def hold_directory(instance: Instance, undo: AsyncExitStack) -> None:
    """Whatever a VMM that was killed left beside what is kept of an ended instance."""
    undo.push_async_callback(to_thread.run_sync, _tidy, instance.paths)


def hold_memory(instance: Instance, undo: AsyncExitStack) -> None:
    """RAM and shared-memory devices: the instance's directory on the tmpfs."""
    undo.push_async_callback(_remove_tree, instance.paths.memory)


def hold_disks(instance: Instance, undo: AsyncExitStack) -> None:
    """Ephemeral overlays: the instance's directory on the root."""
    undo.push_async_callback(_remove_tree, instance.paths.disks)


def hold_reservation(host: Host, undo: AsyncExitStack, reservation: Reservation) -> None:
    """The promise of memory."""
    undo.callback(host.capacity.release, reservation)


def hold_seat(instance: Instance, undo: AsyncExitStack, seat: Seat) -> None:
    """A clone's place in the count of memory."""
    instance.seat = seat
    undo.callback(instance.host.capacity.clones.leave, seat)


def hold_image(instance: Instance, undo: AsyncExitStack) -> None:
    """Whatever resident image the instance uses at its end: a snapshot may have moved it to another."""
    undo.push_async_callback(_release_image, instance)


def hold_vm(instance: Instance, undo: AsyncExitStack) -> None:
    """Whatever VMM process the instance has at its end."""
    undo.push_async_callback(_end_vm, instance)


async def _release_image(instance: Instance) -> None:
    if instance.image is not None:
        digest, instance.image = instance.image.digest, None
        await instance.host.images.release(digest)


async def _end_vm(instance: Instance) -> None:
    if instance.vm is not None:
        await instance.vm.stop(guest_grace_s=0)  # idempotent: usually it has ended by now


def _tidy(paths: InstancePaths) -> None:
    for entry in paths.directory.iterdir() if paths.directory.exists() else ():  # somebody may have removed it
        if entry in paths.kept:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


async def _remove_tree(directory: Path) -> None:
    await to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))
