"""The log file of a daemon in the background: bounded, for it may lie on a tmpfs and the daemon may run for years."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from spec.sizes import MIB

LIMIT_BYTES: Final = 8 * MIB
"""Of the file, and once more of the one before it, ``<name>.1``."""
_STDOUT, _STDERR = 1, 2


def open_log(path: Path) -> int:
    """A descriptor that appends to the file, made for this user alone. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


class LogFile:
    """The file behind this process's stdout and stderr, whoever writes there: also tracebacks of the interpreter.

    Nobody else may rotate it: who has it open would go on writing into the file that was moved away.
    """

    def __init__(self, path: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit_bytes = limit_bytes

    def rotate_if_full(self) -> None:
        """Begin a new file if this one has reached its limit; the one before the last goes. Blocks (microseconds).

        A log that can't be rotated (no more inodes, a directory that was removed) is written on to.
        """
        with suppress(OSError):
            current = os.fstat(_STDERR)
            if current.st_size < self._limit_bytes or not os.path.samestat(current, self._path.lstat()):
                return
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            new = open_log(self._path)
            try:
                for stream in (_STDOUT, _STDERR):
                    os.dup2(new, stream)
            finally:
                os.close(new)
