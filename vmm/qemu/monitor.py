"""QEMU's control connection (QMP): commands, each answered or failed, and what events tell about the guest.

No limits of time here: the caller races each call against a limit and against the exit of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from spec.errors import VmmGarbage, VmmRefused
from vmm import unix_socket
from vmm.qemu.qmp import Qmp, QmpBroken, QmpRefused

GuestEnding = Literal["shutdown", "panic", "reset"]

_DISCONNECT_LIMIT_S = 1.0

_ENDINGS: dict[str, GuestEnding] = {
    "guest-shutdown": "shutdown",
    "guest-reset": "reset",
    "subsystem-reset": "reset",
    "guest-panic": "panic",
}
"""By the reason of a SHUTDOWN event; other reasons are the host's."""


class Monitor:
    """One QMP connection. QEMU serves one at a time, and takes the next when this one is closed."""

    def __init__(self) -> None:
        self.guest_ending: GuestEnding | None = None
        # Events are taken in where they arrive: there is no queue to drain when the process has ended.
        self._qmp = Qmp(self._on_event)
        self._greeting: dict[str, Any] = {}
        self._incoming: asyncio.Future[str] | None = None
        self._socket: socket.socket | None = None

    @classmethod
    async def connect(cls, path: Path) -> Monitor:
        """Connect to the listening socket ``path`` and wait for the greeting. Raises VmmGarbage."""
        monitor = cls()
        try:
            connection = unix_socket.connected(path)
        except OSError as error:
            raise VmmGarbage(f"no QMP at {path}: {error}") from error
        try:
            monitor._socket = connection.dup()
            await asyncio.get_running_loop().create_unix_connection(lambda: monitor._qmp, sock=connection)
            monitor._greeting = await monitor._qmp.greeting
            await monitor._qmp.execute("qmp_capabilities")
        except (QmpBroken, QmpRefused, OSError) as error:
            monitor._abort()
            raise VmmGarbage(f"no QMP at {path}: {error}") from error
        except BaseException:
            monitor._abort()
            connection.close()
            raise
        return monitor

    @property
    def version(self) -> str:
        """The version of the running process. Raises VmmGarbage."""
        try:
            version = self._greeting["version"]["qemu"]
            return f"{version['major']}.{version['minor']}.{version['micro']}"
        except (KeyError, TypeError) as error:
            raise VmmGarbage("the QMP greeting has no version") from error

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """The answer to a command. Raises VmmRefused, VmmGarbage (also for a connection that broke)."""
        try:
            return await self._qmp.execute(command, arguments)
        except QmpRefused as error:
            raise VmmRefused(f"QEMU refuses {command}: {error}", command=command) from error
        except QmpBroken as error:
            raise VmmGarbage(f"QEMU does not answer {command} in QMP: {error}", command=command) from error

    async def send_file(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor under a name. Raises VmmRefused, VmmGarbage.

        It travels with a blank between two commands, on a socket of our own: not every event loop shows its sockets.
        """
        try:
            if self._socket is None:
                raise OSError("there is no connection")
            socket.send_fds(self._socket, [b" "], [fd])
        except OSError as error:
            raise VmmGarbage(f"QEMU takes no descriptor: {error}") from error
        await self.execute("getfd", {"fdname": name})

    async def load(self, source: Mapping[str, object]) -> None:
        """Load device state, and return when that is complete. Raises VmmRefused, VmmGarbage.

        ``source`` are the arguments of ``migrate-incoming``. Unless it is refused at once, QEMU exits if the state
        can't be loaded.
        """
        self._incoming = asyncio.get_running_loop().create_future()
        events = {"capabilities": [{"capability": "events", "state": True}]}
        await self.execute("migrate-set-capabilities", events)
        await self.execute("migrate-incoming", source)
        if await self._incoming != "completed":
            raise VmmRefused("QEMU could not load the device state")

    async def drained(self) -> None:
        """Return when the process has closed the connection: all its events have been seen then."""
        await self._qmp.lost.wait()

    async def close(self) -> None:
        """Close the connection, whatever its state; never raises an error."""
        self._close_socket()
        self._qmp.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCONNECT_LIMIT_S):
                await self._qmp.lost.wait()
                return
        self._qmp.abort()  # what was written is not read

    def _abort(self) -> None:
        self._close_socket()
        self._qmp.abort()

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _on_event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "GUEST_PANICKED":
            self.guest_ending = "panic"
        elif name == "SHUTDOWN" and self.guest_ending is None:
            self.guest_ending = _ENDINGS.get(str(data.get("reason")))
        elif name == "MIGRATION":
            self._on_incoming(str(data.get("status")))

    def _on_incoming(self, status: str) -> None:
        if self._incoming is not None and not self._incoming.done() and status in ("completed", "failed"):
            self._incoming.set_result(status)
