"""Small files that survive a crash: their old content or their new, never half of it."""

from __future__ import annotations

import os
from pathlib import Path

from cache.host_errors import host_errors
from cache.temp_area import TempArea


def write_durably(path: Path, data: bytes, temp: TempArea) -> None:
    """Replace a small file; ``temp`` is on its file system. Raises NoSpace, PermissionMissing."""
    with host_errors(path):
        part, fd = temp.new_file()
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        sync_directory(path.parent)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite(2) until everything is written: a nearly full file system takes a part first. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
