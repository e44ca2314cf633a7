from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ovms_supervisor.logs.console_log import ConsoleLog


class Guest:
    """A VMM's serial port: appends to the file, as QEMU's and Cloud Hypervisor's do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    def prints(self, data: bytes) -> None:
        self._file.write(data)

    def ends(self) -> None:
        self._file.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path / "console.log")
    yield guest
    guest.ends()


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[ConsoleLog]:
    log = ConsoleLog(tmp_path / "console.log", tmp_path / "console.index", limit_bytes=256 << 10)
    await log.open()
    async with asyncio.timeout(60):
        yield log
    await log.close(None)
