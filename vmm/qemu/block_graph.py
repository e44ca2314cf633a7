"""Disks as QEMU's block nodes: every layer of a chain named with its format, so that QEMU never guesses one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmm.disk_chain import disk_chain
from vmm.driver import Disk


def disk_node(disk: Disk, name: str) -> dict[str, Any]:
    """The argument of ``-blockdev`` for a disk and all layers below it; ``name`` is the node that the device uses.

    Blocks (reads the headers). Raises UnsafeDisk, FileMissing, PermissionMissing.
    """
    top, *below = disk_chain(disk)
    first = node = _node(top.path, top.format, read_only=disk.read_only, name=name)
    for link in below:
        node["backing"] = _node(link.path, link.format, read_only=True)
        node = node["backing"]
    if node["driver"] == "qcow2":
        node["backing"] = None
    return first


def overlay_node(path: Path, name: str) -> dict[str, Any]:
    """The argument of ``blockdev-add`` for a fresh overlay that a running machine is about to get.

    Its backing node is the one in use (``blockdev-snapshot`` puts it below), not a second look at the same file.
    """
    return {**_node(path, "qcow2", read_only=False, name=name), "backing": None}


def _node(path: Path, image_format: str, *, read_only: bool, name: str | None = None) -> dict[str, Any]:
    node: dict[str, Any] = {
        "driver": image_format,
        "read-only": read_only,
        "file": {"driver": "file", "filename": str(path.absolute()), "read-only": read_only},
    }
    if not read_only:
        node["discard"] = node["file"]["discard"] = "unmap"  # what the guest trims, the host gets back
    if name is not None:
        node["node-name"] = name
    return node
