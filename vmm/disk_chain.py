"""The files of a disk: the image that a machine writes to, and all layers below it, as their headers name them.

A guest that writes a qcow2 header into its raw disk must not make the next start open files of its choice; and what a
header says about its backing file is checked here before a VMM acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spec.errors import FileMissing, PermissionMissing, UnsafeDisk
from spec.qcow2 import HEAD_BYTES, Qcow2Header, parse_header
from vmm.driver import Disk

_MAX_LAYERS = 128
_FORMATS: dict[str, Literal["qcow2", "raw"]] = {"qcow2": "qcow2", "raw": "raw"}


@dataclass(frozen=True, slots=True)
class Link:
    """One file of a chain."""

    path: Path
    format: Literal["qcow2", "raw"]


def disk_chain(disk: Disk) -> list[Link]:
    """The disk's file first, then each backing file. Blocks (reads the headers).

    Raises UnsafeDisk, FileMissing, PermissionMissing.
    """
    chain = [Link(disk.path, disk.format)]
    while chain[-1].format == "qcow2":
        path = chain[-1].path
        header = _header(path)
        if header.backing_name is None:
            break
        backing_format = _FORMATS.get(header.backing_format or "")
        if backing_format is None:
            raise UnsafeDisk(f"{path} does not say whether its backing file is qcow2 or raw")
        if len(chain) == _MAX_LAYERS:
            raise UnsafeDisk(f"the disk {disk.path} has more than {_MAX_LAYERS} layers")
        chain.append(Link(path.parent / header.backing_name, backing_format))
    if not chain[-1].path.exists():
        raise FileMissing(f"the disk image {chain[-1].path} is not there", path=str(chain[-1].path))
    return chain


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
