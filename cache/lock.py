"""Locks between processes and threads: flock(2) on files that their holder may remove."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.host_errors import host_errors


@contextmanager
def exclusive(path: Path, *, remove: bool = False) -> Iterator[None]:
    """Hold the lock of that file, made if need be; waits for other holders, be they threads or processes.

    The kernel releases the lock of a holder that dies. With ``remove`` the file goes away with its last holder: for
    locks that are many and short-lived. Not re-entrant.
    """
    with host_errors(path):
        fd = _acquire(path)
    try:
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        os.close(fd)


def _acquire(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(fd)
            raise
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # its holder removed it while we waited: the lock is now another file


def hold(fd: int) -> bool:
    """Mark an open file or directory as in use by this process until it is closed; False: somebody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0


def remove_if_free(path: Path) -> None:
    """Remove a lock file that a killed holder left; one that is held stays. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if hold(fd):
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)
