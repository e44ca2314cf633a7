"""Overlay files: an empty qcow2 image over a disk that stays as it is, for all that one instance writes.

Made without ``qemu-img``: a start needs no process and no format probing for it. Everything here blocks (some hundred
microseconds), so call it in a thread.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Literal

from spec.errors import FileMissing, InUse, NoSpace, PermissionMissing
from spec.qcow2 import build_overlay_header

_BLOCK_BYTES = 4096


def create_overlay(path: Path, backing: Path, backing_format: Literal["qcow2", "raw"], virtual_size_bytes: int) -> None:
    """Make the overlay ``path`` (mode 0600), which must not exist; nothing is left of it after an error.

    The backing file is named by its absolute path, and its format in the header, so nobody guesses. Blocks of zeros
    become holes. Nothing is synced: the guest's first flush makes the header durable together with its own data.
    Raises InUse, FileMissing, NoSpace, PermissionMissing, UnsafeDisk (a size or name that the format can't hold).
    """
    image = build_overlay_header(str(backing.absolute()), backing_format, virtual_size_bytes)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _as_ours(error, path) from error
    try:
        _write_sparse(fd, image)
    except OSError as error:
        path.unlink()
        raise _as_ours(error, path) from error
    finally:
        os.close(fd)


def _write_sparse(fd: int, image: bytes) -> None:
    zeros = bytes(_BLOCK_BYTES)
    os.ftruncate(fd, len(image))
    for offset in range(0, len(image), _BLOCK_BYTES):
        block = image[offset : offset + _BLOCK_BYTES]
        if block != zeros:
            os.pwrite(fd, block, offset)


def _as_ours(error: OSError, path: Path) -> InUse | FileMissing | NoSpace | PermissionMissing:
    match error.errno:
        case errno.EEXIST:
            return InUse(f"the overlay {path} exists already")
        case errno.ENOENT | errno.ENOTDIR:
            return FileMissing(f"there is no directory {path.parent}")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PermissionMissing(f"cannot make the overlay {path}: {error.strerror}")
        case _:
            return NoSpace(f"cannot make the overlay {path}: {error.strerror}")
