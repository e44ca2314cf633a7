"""Lets one file operation of our own code fail, counted from the beginning: the n-th, whichever that is."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

OPENING = ("open", "mkdir")
WRITING = ("write", "pwrite", "fsync", "rename", "replace", "link", "symlink", "truncate", "ftruncate", "fdatasync")
_OURS = tuple(f"/{name}/" for name in ("ovms_supervisor", "cache", "vmm"))
_ROOT = str(Path(__file__).parents[2])


class IoFaults:
    """The operations of our code on files of a directory; from the ``at``-th on ``times`` of them fail."""

    def __init__(self, directory: Path, at: int, error: int, *, times: int = 1) -> None:
        self.struck: list[str] = []
        """Where it struck: operation, file, and the function of ours."""
        self.seen = 0
        self._directory = str(directory)
        self._at = range(at, at + times)
        self._errno = error
        self._lock = threading.Lock()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the context, operations are counted and fail."""
        patches = [patch.object(os, name, self._wrapped(name, getattr(os, name))) for name in (*OPENING, *WRITING)]
        patches.append(patch.object(io, "open", self._wrapped("open", io.open)))
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in patches:
                each.stop()

    def _wrapped(self, name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._may_fail(name, args, kwargs)
            return real(*args, **kwargs)

        return call

    def _may_fail(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caller = _caller(sys._getframe(2))
        if caller is None or not _can_fail(name, args, self._errno):
            return
        paths = (_path(each) for each in (*args, *kwargs.values()))
        path = next((path for path in paths if path.startswith(self._directory)), None)
        if path is None:
            return
        with self._lock:
            strikes = self.seen in self._at
            self.seen += 1
        if strikes:
            self.struck.append(f"{name} {path} in {caller}")
            raise OSError(self._errno, os.strerror(self._errno), path if name in OPENING else None)


def _can_fail(name: str, args: tuple[Any, ...], error: int) -> bool:
    if name != "open":
        return error != errno.EMFILE
    if isinstance(args[0], int):  # a file object for a descriptor
        return False
    how = args[1] if len(args) > 1 else "r"
    makes = bool(how & os.O_CREAT) if isinstance(how, int) else bool({*how} & {*"wax"})
    return makes or error not in (errno.ENOSPC, errno.EDQUOT)


def _caller(frame: FrameType | None) -> str | None:
    """The innermost function of our code, unless one of the tests comes first."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_ROOT) and "/.venv/" not in file:
            ours = file.removeprefix(_ROOT)
            return f"{ours[1:]}:{frame.f_code.co_name}" if ours.startswith(_OURS) else None
        frame = frame.f_back
    return None


def _path(argument: object) -> str:
    if isinstance(argument, int) and argument > 2:
        try:
            return str(Path(f"/proc/self/fd/{argument}").readlink())
        except OSError:
            return ""
    return os.fspath(argument) if isinstance(argument, str | Path) else ""
