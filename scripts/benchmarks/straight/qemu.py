"""QEMU by hand: the same command line, QMP over a socket that it makes, state by a descriptor, cont."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from scripts.benchmarks.straight.machine import connected, kill, spawn


class QemuClone:
    """A clone of the same image as the daemon's."""

    def __init__(self, argv: list[str], state: Path, directory: Path) -> None:
        self._argv = argv
        self._state = state
        self._directory = directory
        self._pid = 0
        self._qmp: socket.socket | None = None
        self._buffer = b""

    def start(self) -> None:
        """Until ``cont`` has answered: the machine goes on."""
        self._directory.mkdir()
        path = self._directory / "qmp.sock"
        argv = [each.replace("@DIRECTORY@", str(self._directory)) for each in self._argv]
        self._pid = spawn([*argv, "-qmp", f"unix:{path},server=on,wait=off"], self._directory / "log")
        self._qmp = connected(path, self._pid)
        self._next("QMP")
        self.execute("qmp_capabilities")
        self.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        state = os.open(self._state, os.O_RDONLY)
        try:
            self.execute("getfd", send=[state], fdname="state")
        finally:
            os.close(state)
        self.execute("migrate-incoming", uri="fd:state")
        while self._next("event")["data"].get("status") != "completed":
            pass
        self.resume()

    def pause(self) -> None:
        """Let it stand still."""
        self.execute("stop")

    def resume(self) -> None:
        """Let it go on."""
        self.execute("cont")

    def end(self) -> None:
        """Kill it; its directory goes."""
        if self._qmp is not None:
            self._qmp.close()
        if self._pid:
            kill(self._pid)
        shutil.rmtree(self._directory, ignore_errors=True)

    def execute(self, command: str, *, send: list[int] | None = None, **arguments: Any) -> None:
        """A command that must succeed."""
        assert self._qmp is not None
        message = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})}).encode()
        if send:
            socket.send_fds(self._qmp, [message], send)
        else:
            self._qmp.sendall(message)
        self._next("return")

    def _next(self, kind: str) -> Any:
        """The next message of a kind; events that come before it are of no interest."""
        assert self._qmp is not None
        while True:
            line, separator, rest = self._buffer.partition(b"\n")
            if not separator:
                self._buffer += self._qmp.recv(1 << 16)
                continue
            self._buffer = rest
            message = json.loads(line)
            if "error" in message:
                raise RuntimeError(str(message))
            if kind in message:
                return message


class QemuClones:
    """Makes clones after the pattern of a running one of the daemon's: its very command line, other paths."""

    def __init__(self, pid: int, instance: Path, directory: Path) -> None:
        self._argv = plain_command_line(pid, instance)
        self._state = Path(ram_backend(self._argv)["mem-path"]).parent / "state" / "devices"
        self._directory = directory
        self._made = 0

    def clone(self) -> QemuClone:
        """The next one; nothing is done for it yet."""
        self._made += 1
        return QemuClone(self._argv, self._state, self._directory / f"straight-qemu-{self._made}")


def plain_command_line(pid: int, instance: Path) -> list[str]:
    """That of a process of the daemon's with ``@DIRECTORY@`` for the instance's own, and without what it is given open:
    the control socket, and the console, which is a file in the directory instead.
    """
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    plain: list[str] = []
    skip = 0
    for option, value in zip(argv, [*argv[1:], ""], strict=True):
        if skip:
            skip -= 1
        elif option == "-chardev" and value.startswith("socket,id=qmp"):
            skip = 3  # and the '-mon' that uses it
        elif option == "-add-fd":
            skip = 1
        elif option.startswith("file,id=console"):
            plain.append("file,id=console,path=@DIRECTORY@/console,append=on")
        else:
            plain.append(option.replace(str(instance), "@DIRECTORY@"))
    return plain


def ram_backend(argv: list[str]) -> dict[str, Any]:
    """The '-object' that is guest RAM."""
    objects = [json.loads(each) for each in argv if each.startswith("{")]
    return next(each for each in objects if each.get("id") == "ram")
