"""One daemon per run directory and per root."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cache.host_errors import explain
from spec.errors import DaemonRunning


@contextmanager
def locked(paths: tuple[Path, ...]) -> Iterator[None]:
    """Hold the lock files, which stay behind: removing one would let two daemons lock two files of one name.

    Blocks for microseconds. Raises DaemonRunning, PermissionMissing (also on a read-only file system), NoSpace.
    """
    with ExitStack() as held:
        for path in paths:
            held.enter_context(_locked(path))
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise explain(error, path) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
            raise DaemonRunning(f"a daemon (pid {owner}) uses {path.parent}", directory=str(path.parent)) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
