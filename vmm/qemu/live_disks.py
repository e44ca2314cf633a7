"""New overlays for the disks of a machine that exists: what was written so far freezes, what comes goes on top."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from anyio import CancelScope

from spec.errors import InternalError, OvmsError, VmmGarbage
from vmm.driver import Disk
from vmm.qemu.block_graph import overlay_node
from vmm.qemu.board import disk_id

_DEVICE = re.compile(r"/machine/peripheral/([^/]+)")


class Command(Protocol):
    """Executes a QMP command within a limit of time."""

    def __call__(self, command: str, arguments: dict[str, object] | None = None, /) -> Awaitable[Any]:
        """The answer. Raises Vmm*."""


async def put_overlays(command: Command, disks: tuple[Disk, ...], overlays: Sequence[Disk]) -> tuple[Disk, ...]:
    """Put an overlay over each writable disk of a paused machine, over all of them or none; returns its disks then.

    The overlays are in the order of the writable disks, empty, and backed by them on disk as well. Raises VmmRefused
    and the other errors of a command; InternalError for a wrong number of overlays.
    """
    writable = [number for number, disk in enumerate(disks) if not disk.read_only]
    if len(writable) != len(overlays):
        raise InternalError(f"{len(overlays)} overlays for {len(writable)} writable disks")
    if not writable:
        return disks
    nodes = _nodes_in_use(await command("query-block"))
    if missing := {disk_id(number) for number in writable} - nodes.keys():
        raise VmmGarbage(f"QEMU's 'query-block' does not show {', '.join(sorted(missing))}")
    added: list[str] = []
    try:
        actions = []
        for number, overlay in zip(writable, overlays, strict=True):
            node = nodes[disk_id(number)]
            fresh = _successor_of(node)
            await command("blockdev-add", overlay_node(overlay.path, fresh))
            added.append(fresh)
            actions.append({"type": "blockdev-snapshot", "data": {"node": node, "overlay": fresh}})
        await command("transaction", {"actions": actions})
    except BaseException:
        with CancelScope(shield=True):
            for name in added:
                with suppress(OvmsError):  # refused if the transaction did happen, and the disk is in use
                    await command("blockdev-del", {"node-name": name})
        raise
    after = dict(zip(writable, overlays, strict=True))
    return tuple(after.get(number, disk) for number, disk in enumerate(disks))


def _nodes_in_use(blocks: list[dict[str, Any]]) -> dict[str, str]:
    """The block node on top of each disk, by the id of its device: an earlier daemon may have put it there."""
    found = {}
    for block in blocks:
        device = _DEVICE.match(str(block.get("qdev")))
        if device is not None and "inserted" in block:
            found[device[1]] = str(block["inserted"]["node-name"])
    return found


def _successor_of(node: str) -> str:
    """``disk0`` → ``disk0.1`` → ``disk0.2``; the names of those below stay taken."""
    name, _, number = node.partition(".")
    return f"{name}.{int(number or 0) + 1}"
