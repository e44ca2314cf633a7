"""Disks as QEMU's block nodes: every layer of a chain named with its format, so that QEMU never guesses one.

A guest that writes a qcow2 header into its raw disk must not make the next start open files of its choice; and what a
header says about its backing file is checked here before QEMU acts on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spec.errors import FileMissing, PermissionMissing, UnsafeDisk
from spec.qcow2 import HEAD_BYTES, Qcow2Header, parse_header
from vmm.driver import Disk

_MAX_LAYERS = 128


def disk_node(disk: Disk, name: str) -> dict[str, Any]:
    """The argument of ``-blockdev`` for a disk and all layers below it; ``name`` is the node that the device uses.

    Blocks (reads the headers). Raises UnsafeDisk, FileMissing, PermissionMissing.
    """
    top = _node(disk.path, disk.format, read_only=disk.read_only, name=name)
    node, path, layers = top, disk.path, 1
    while node["driver"] == "qcow2":
        header = _header(path)
        if header.backing_name is None:
            node["backing"] = None
            break
        if header.backing_format not in ("qcow2", "raw"):
            raise UnsafeDisk(f"{path} does not say whether its backing file is qcow2 or raw")
        layers += 1
        if layers > _MAX_LAYERS:
            raise UnsafeDisk(f"the disk {disk.path} has more than {_MAX_LAYERS} layers")
        path = path.parent / header.backing_name
        node["backing"] = _node(path, header.backing_format, read_only=True)
        node = node["backing"]
    if not path.exists():
        raise FileMissing(f"the disk image {path} is not there", path=str(path))
    return top


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


def _header(path: Path) -> Qcow2Header:
    try:
        with path.open("rb") as file:
            return parse_header(file.read(HEAD_BYTES))
    except FileNotFoundError as error:
        raise FileMissing(f"the disk image {path} is not there", path=str(path)) from error
    except OSError as error:
        raise PermissionMissing(f"the disk image {path} can't be read: {error.strerror}") from error
    except UnsafeDisk as error:
        raise UnsafeDisk(f"{path}: {error.detail}", path=str(path)) from error
