"""The journal file of one instance: replaced as a whole, so that it is always one record or the one before.

On a tmpfs, where the run directory usually is, replacing it is four system calls of some microseconds and nothing that
waits for a disk: the event loop does it itself, as a visit of a thread costs ten times as much, and on a busy host
milliseconds.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import anyio
from anyio import to_thread

from cache.durable import write_all
from cache.statfs import is_tmpfs
from ovms_supervisor.instance.record import Record, decode, encode
from spec.errors import CorruptStore, NoSpace


class Journal:
    """Writes records in the order in which it was asked to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = anyio.Lock()

    async def write(self, record: Record) -> None:
        """Make the record, as it is now, durable. Raises NoSpace."""
        data = encode(record)
        if _on_tmpfs.get(self.path.parent.parent) and not self._turn.locked():
            _replace_in_memory(self.path, data)
            return
        async with self._turn:
            await to_thread.run_sync(_replace, self.path, data)


_on_tmpfs: dict[Path, bool] = {}
"""By the directory of all instances, as the first look in a thread has found it."""


def read(path: Path) -> Record:
    """The record in a journal file (blocks). Raises CorruptStore, also where there is none."""
    try:
        _look_at_the_file_system(path)
        return decode(path.read_bytes())
    except OSError as error:
        raise CorruptStore(f"{path} cannot be read: {error.strerror}") from error


def _replace_in_memory(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    try:
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            _restore_directory(path)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data, 0)
        finally:
            os.close(fd)
        os.rename(new, path)  # noqa: PTH104 - one system call, no object
    except OSError as error:
        _remove(new)
        raise _explained(path, error) from error


def _replace(path: Path, data: bytes) -> None:
    _look_at_the_file_system(path)
    new = path.with_suffix(".new")
    try:
        _restore_directory(path)
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        _remove(new)
        raise _explained(path, error) from error


def _remove(new: Path) -> None:
    """What could not be written takes no room; also where that fails it is replaced by the next."""
    with suppress(OSError):
        os.unlink(new)  # noqa: PTH108 - as above


def _restore_directory(path: Path) -> None:
    """Somebody may have removed it from under a machine, which the next daemon would end if no journal told of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _look_at_the_file_system(path: Path) -> None:
    directory = path.parent.parent
    if directory not in _on_tmpfs:
        _on_tmpfs[directory] = is_tmpfs(directory)


def _explained(path: Path, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"the journal {path} cannot be written: {error.strerror}")
    return error
