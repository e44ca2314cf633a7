"""``ovm serve`` as a process on directories of its own, one after the other, each told where to die if at all."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from ovms_supervisor.client import Client
from spec.errors import OvmsError
from spec.fault_points import VARIABLE


class Daemon:
    """At most one process at a time; its output goes to ``daemon.log``."""

    limit_s = 60.0
    """What it may take to answer, or to die: enough on a slow machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "run" / "ovms.sock"
        self.log = directory / "daemon.log"
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def spawn(self, die_at: str = "") -> None:
        """Start the process and do not wait for it."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OVMS_")},
            "OVMS_IMAGE_DIR": str(self.directory / "images"),
            "OVMS_MLOCK": "best-effort",
            "OVMS_WARM_RESERVE": "0",
            "OVMS_IMAGE_BUDGET": "1G",
            "OVMS_LOG_FORMAT": "json",
            **({VARIABLE: die_at} if die_at else {}),
        }
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "ovms_supervisor.cli", "--config", os.devnull),
                *("--root", str(self.directory / "root"), "--run-dir", str(self.directory / "run"), "serve"),
                cwd=Path(__file__).parents[2],
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def start(self, die_at: str = "") -> None:
        """Start the process, and return when it answers. Raises AssertionError if it ends instead."""
        await self.spawn(die_at)
        async with asyncio.timeout(self.limit_s), Client(self.socket) as client:
            while True:
                assert self.process is not None
                assert self.process.returncode is None, (
                    f"the daemon ended with {self.process.returncode}: {self.tail()}"
                )
                with suppress(OvmsError, OSError):
                    await client.health()
                    return
                await asyncio.sleep(0.05)

    async def died(self) -> bool:
        """Wait for it to kill itself; False if it does not, or ends in another way."""
        assert self.process is not None
        try:
            async with asyncio.timeout(self.limit_s):
                return await self.process.wait() == -signal.SIGKILL
        except TimeoutError:
            return False

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal and wait for the end."""
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(self.limit_s):
            await self.process.wait()

    def tail(self) -> str:
        """The last lines of the log."""
        return self.log.read_text(errors="replace")[-3000:]
