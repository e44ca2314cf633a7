"""What the plain way needs: a socket that appears, a process that goes."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Protocol

LOOK_S = 0.0003
LIMIT_S = 60.0


class Straight(Protocol):
    """One machine started by hand."""

    def start(self) -> None:
        """Until its guest goes on; this is what is timed."""

    def pause(self) -> None:
        """Let it stand still."""

    def resume(self) -> None:
        """Let it go on."""

    def end(self) -> None:
        """Kill it and tidy up."""


def spawn(argv: list[str], log: Path) -> int:
    """Start a process with everything it says in ``log``."""
    return os.posix_spawnp(
        argv[0],
        argv,
        {"PATH": os.environ["PATH"]},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def connected(path: Path, pid: int) -> socket.socket:
    """A connection to a socket that a process is about to make. Raises OSError, also if it ends before."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > deadline or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise
            time.sleep(LOOK_S)
        else:
            connection.settimeout(LIMIT_S)
            return connection


def kill(pid: int) -> None:
    """End a child of ours and reap it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
