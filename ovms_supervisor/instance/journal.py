"""The journal file of one instance: replaced as a whole, so that it is always one record or the one before."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import anyio
from anyio import to_thread

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
        async with self._turn:
            await to_thread.run_sync(_replace, self.path, data)


def read(path: Path) -> Record:
    """The record in a journal file (blocks). Raises CorruptStore, also where there is none."""
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise CorruptStore(f"{path} cannot be read: {error.strerror}") from error


def _replace(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"the journal {path} cannot be written: {error.strerror}") from error
        raise
