"""Files and directories on their way into the store, recognisable as dead when their writer is."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from cache.lock import hold


class TempArea:
    """A directory of unfinished things, on the file system of their destination.

    Each is locked by its writer for as long as it is open there, so that what nobody holds was left by a process that
    died: a process id in the name would be reused, an age would be a guess.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def new_file(self) -> tuple[Path, int]:
        """An empty file and its descriptor, opened for reading and writing. Raises OSError."""
        while True:
            path = self._name()
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            if hold(fd):
                return path, fd
            os.close(fd)  # a cleaner saw it before we held it

    def new_directory(self) -> tuple[Path, int]:
        """An empty directory and a descriptor that holds it. Raises OSError."""
        while True:
            path = self._name()
            path.mkdir()
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if hold(fd):
                return path, fd
            os.close(fd)

    def discard_directory(self, directory: Path) -> None:
        """Take a published directory out of sight at once, then remove it. Missing is fine. Raises OSError."""
        grave = self.bury(directory)
        if grave is not None:
            self.destroy(grave)

    def bury(self, path: Path) -> Path | None:
        """Take something published out of sight; nobody holds it, so who cleans may remove it. None: it was missing."""
        grave = self._name()
        try:
            return path.rename(grave)
        except FileNotFoundError:
            return None

    def destroy(self, grave: Path) -> None:
        """Remove what was buried, if nobody else has. Raises OSError."""
        _remove(grave)

    def clean(self) -> list[Path]:
        """Remove what dead writers left; returns what that was. Raises OSError."""
        return [path for path in sorted(self.directory.iterdir()) if _remove_if_dead(path)]

    def _name(self) -> Path:
        return self.directory / f"{os.getpid()}-{secrets.token_hex(8)}"


def _remove_if_dead(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not hold(fd):
            return False
        _remove(path)
        return True
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, onerror=_unless_missing)
    else:
        path.unlink(missing_ok=True)


def _unless_missing(_function: object, _path: str, raised: Any) -> None:
    """Somebody else removes it, too: that is fine."""
    if not isinstance(raised[1], FileNotFoundError):
        raise raised[1]
