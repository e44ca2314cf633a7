"""QEMU's control connection (QMP): commands, each answered or failed, and what events tell about the guest.

No limits of time here: the caller races each call against a limit and against the exit of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
)

from spec.errors import VmmGarbage, VmmRefused
from vmm import unix_socket

GuestEnding = Literal["shutdown", "panic", "reset"]

_DISCONNECT_LIMIT_S = 1.0

_ENDINGS: dict[str, GuestEnding] = {
    "guest-shutdown": "shutdown",
    "guest-reset": "reset",
    "subsystem-reset": "reset",
    "guest-panic": "panic",
}
"""By the reason of a SHUTDOWN event; other reasons are the host's."""

# It logs as errors what it also raises, and what we tell in our own words.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Monitor:
    """One QMP connection. QEMU serves one at a time, and takes the next when this one is closed."""

    def __init__(self) -> None:
        self.guest_ending: GuestEnding | None = None
        self._client = QMPClient()
        # Events are taken in where they arrive: there is no queue to drain when the process has ended.
        self._client.register_listener(EventListener(event_filter=self._on_event))
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
            await monitor._client.connect(connection)
        except ConnectError as error:
            monitor._close_socket()
            raise VmmGarbage(f"no QMP at {path}: {error.exc or error}") from error
        except BaseException:
            monitor._close_socket()
            raise
        return monitor

    @property
    def version(self) -> str:
        """The version of the running process. Raises VmmGarbage."""
        greeting = self._client.greeting
        try:
            version: Any = greeting.QMP.version["qemu"] if greeting else {}
            return f"{version['major']}.{version['minor']}.{version['micro']}"
        except (KeyError, TypeError) as error:
            raise VmmGarbage("the QMP greeting has no version") from error

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """The answer to a command. Raises VmmRefused, VmmGarbage (also for a connection that broke)."""
        try:
            return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise VmmRefused(f"QEMU refuses {command}: {error.error.error.desc}", command=command) from error
        except (ExecInterruptedError, QMPError) as error:
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
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """Close the connection, whatever its state; never raises an error."""
        self._close_socket()
        with contextlib.suppress(QMPError, OSError, EOFError, ValueError, TimeoutError):
            async with asyncio.timeout(_DISCONNECT_LIMIT_S):
                await self._client.disconnect()

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _on_event(self, event: Message) -> bool:
        name, data = event.get("event"), event.get("data")
        details: Mapping[Any, Any] = data if isinstance(data, Mapping) else {}
        if name == "GUEST_PANICKED":
            self.guest_ending = "panic"
        elif name == "SHUTDOWN" and self.guest_ending is None:
            self.guest_ending = _ENDINGS.get(str(details.get("reason")))
        elif name == "MIGRATION":
            self._on_incoming(str(details.get("status")))
        return False

    def _on_incoming(self, status: str) -> None:
        if self._incoming is not None and not self._incoming.done() and status in ("completed", "failed"):
            self._incoming.set_result(status)
