"""Cloud Hypervisor by hand: write config.json, spawn, wait for the API socket, vm.restore with resume."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

from scripts.benchmarks.http import Connection
from scripts.benchmarks.straight.machine import connected, kill, spawn

BINARY = "cloud-hypervisor"


class CloudHypervisorClone:
    """A clone of the same image as the daemon's."""

    def __init__(self, config: dict[str, Any], state: Path, directory: Path) -> None:
        self._config = config
        self._state = state
        self._directory = directory
        self._pid = 0
        self._api: socket.socket | None = None

    def start(self) -> None:
        """Until vm.restore has answered: the machine has been resumed."""
        self._directory.mkdir()
        (self._directory / "config.json").write_text(json.dumps(self._config))
        (self._directory / "state.json").symlink_to(self._state)
        path = self._directory / "api.sock"
        self._pid = spawn([BINARY, "--api-socket", f"path={path}"], self._directory / "log")
        self._api = connected(path, self._pid)
        body = json.dumps({"source_url": f"file://{self._directory}", "resume": True})
        self._put("vm.restore", body)

    def pause(self) -> None:
        """Let it stand still."""
        self._put("vm.pause")

    def resume(self) -> None:
        """Let it go on."""
        self._put("vm.resume")

    def end(self) -> None:
        """Kill it; its directory goes."""
        if self._api is not None:
            self._api.close()
        if self._pid:
            kill(self._pid)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _put(self, command: str, body: str = "") -> None:
        assert self._api is not None
        head = f"PUT /api/v1/{command} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._api.sendall(f"{head}\r\n{body}".encode())
        reply = self._api.recv(1 << 16)
        if not reply.startswith((b"HTTP/1.1 204", b"HTTP/1.1 200")):
            raise RuntimeError(f"{command}: {reply.decode(errors='replace')}")


class CloudHypervisorClones:
    """Makes clones after the pattern of a running one of the daemon's."""

    def __init__(self, instance: Path, directory: Path) -> None:
        with Connection(next(instance.glob("cloud-hypervisor-*.sock"))) as api:
            self._config: dict[str, Any] = api.call("GET", "/api/v1/vm.info")["config"]
        self._config["serial"] = {"mode": "Tty"}
        image = Path(self._config["memory"]["zones"][0]["file"]).parent
        self._state = image / "state" / "state.json"
        self._directory = directory
        self._made = 0

    def clone(self) -> CloudHypervisorClone:
        """The next one; nothing is done for it yet."""
        self._made += 1
        return CloudHypervisorClone(self._config, self._state, self._directory / f"straight-ch-{self._made}")
