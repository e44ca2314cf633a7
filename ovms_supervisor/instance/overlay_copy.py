"""The state of a disk whose overlay the machine goes on writing to: a copy, made while the machine stands still.

For a VMM that cannot exchange the file of a disk. It has written all metadata of the image when it is paused (Cloud
Hypervisor: ``sync_metadata`` in ``Block::pause``), but has the image open, so that the copy is marked as in use.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from cache.ramsnap import copy_image
from spec.sizes import MIB

MOST_BYTES: Final = 16 * MIB
"""Of an overlay that is copied block by block in the pause; it takes some milliseconds."""

_FICLONE: Final = 0x40049409
_QCOW2_VERSION_3: Final = b"QFI\xfb\x00\x00\x00\x03"
_INCOMPATIBLE_AT: Final = 79
"""The lowest byte of the incompatible features (QEMU's docs/interop/qcow2.txt)."""
_DIRTY: Final = 1


def can_be_copied(overlay: Path, destination: Path) -> bool:
    """Whether a copy takes hardly any time: the file system shares blocks, or there are few. Blocks.

    Makes the directory of the destination.
    """
    destination.parent.mkdir(mode=0o700, parents=True)
    if overlay.stat().st_blocks * 512 <= MOST_BYTES:
        return True
    shared = _share_blocks(overlay, destination)
    destination.unlink(missing_ok=True)
    return shared


def copy_overlay(overlay: Path, destination: Path) -> None:
    """Copy a qcow2 that nobody writes to just now, and mark the copy as closed. Blocks. Raises NoSpace, HostLimit."""
    if not _share_blocks(overlay, destination):
        destination.unlink(missing_ok=True)
        copy_image(overlay, destination)
    with destination.open("r+b", 0) as file:
        if os.pread(file.fileno(), 8, 0) == _QCOW2_VERSION_3:
            features = os.pread(file.fileno(), 1, _INCOMPATIBLE_AT)[0]
            os.pwrite(file.fileno(), bytes([features & ~_DIRTY]), _INCOMPATIBLE_AT)


def _share_blocks(source: Path, destination: Path) -> bool:
    with source.open("rb", 0) as old, destination.open("wb", 0) as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            return False
    return True
