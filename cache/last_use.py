"""When artifacts were last used: the time of an empty file for each, which costs a start some microseconds."""

from __future__ import annotations

import os
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from spec.digest import Digest, hex_of


class LastUse:
    """Needs no lock. A time that could not be noted is no reason to fail: the artifact looks older than it is."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, digest: Digest) -> None:
        """It is used now."""
        path = self._path(digest)
        with suppress(OSError):
            try:
                os.utime(path)
            except FileNotFoundError:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))

    def of(self, digest: Digest) -> float:
        """Seconds since the epoch; 0 if that was never noted."""
        try:
            return self._path(digest).stat().st_mtime
        except OSError:
            return 0

    def forget_all_but(self, digests: Container[str]) -> None:
        """Drop the notes of artifacts that are gone. Raises OSError."""
        for path in self._directory.iterdir():
            if f"sha256:{path.name}" not in digests:
                path.unlink(missing_ok=True)

    def _path(self, digest: Digest) -> Path:
        return self._directory / hex_of(digest)
