"""The file that is a machine's RAM."""

from __future__ import annotations

import os

from spec.errors import FileMissing, InUse, NoSpace
from vmm.driver import Ram


def create(ram: Ram) -> None:
    """Make the RAM file of a cold boot: all hole, mode 0600. Raises InUse if it exists, FileMissing, NoSpace.

    It takes microseconds and is to be called in the event loop: a thread could make the file after the caller was
    cancelled and had cleaned up.
    """
    try:
        fd = os.open(ram.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise InUse(f"the RAM file {ram.path} exists already") from error
    except OSError as error:
        raise FileMissing(f"cannot make the RAM file {ram.path}: {error.strerror}") from error
    try:
        os.ftruncate(fd, ram.size_bytes)
    except OSError as error:
        ram.path.unlink()
        raise NoSpace(f"cannot make a RAM file of {ram.size_bytes} bytes: {error.strerror}") from error
    finally:
        os.close(fd)
