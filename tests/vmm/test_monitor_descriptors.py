"""Descriptors reach QEMU over the monitor, on whatever event loop: a peer that is no QEMU says what it was given."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from ovms_supervisor.config.settings import EventLoop
from ovms_supervisor.event_loop import loop_factory
from spec.errors import VmmGarbage
from vmm.qemu.monitor import Monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}


def serve(listener: socket.socket, received: list[bytes]) -> None:
    """One conversation: greet, answer every command, and read what each descriptor leads to."""
    connection, _ = listener.accept()
    with listener, connection:
        connection.settimeout(30)
        connection.sendall(json.dumps(GREETING).encode() + b"\n")
        text = b""
        while True:
            data, fds, _, _ = socket.recv_fds(connection, 4096, 4)
            for fd in fds:
                received.append(os.pread(fd, 100, 0))
                os.close(fd)
            if not data:
                return
            text += data
            try:
                command = json.loads(text)
            except ValueError:  # not all of it yet: a command has no end of line
                continue
            text = b""
            connection.sendall(json.dumps({"return": {}, "id": command.get("id")}).encode() + b"\n")


@pytest.mark.usefixtures("uvloop_here")
@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_a_file_is_sent(tmp_path: Path, event_loop: EventLoop) -> None:
    received: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "qmp"))
    listener.listen()
    peer = threading.Thread(target=serve, args=(listener, received))
    peer.start()
    (tmp_path / "state").write_bytes(b"the state of a machine")

    async def converse() -> None:
        monitor = await Monitor.connect(tmp_path / "qmp")
        fd = os.open(tmp_path / "state", os.O_RDONLY)
        try:
            assert monitor.version == "7.2.0"
            for _ in range(3):
                await monitor.execute("query-status")
                await monitor.send_file("state", fd)
        finally:
            os.close(fd)
            await monitor.close()
        with pytest.raises(VmmGarbage, match="no descriptor"):
            await monitor.send_file("state", 0)

    with asyncio.Runner(loop_factory=loop_factory(event_loop)) as runner:
        runner.run(asyncio.wait_for(converse(), 30))
    peer.join(30)
    assert received == [b"the state of a machine"] * 3
