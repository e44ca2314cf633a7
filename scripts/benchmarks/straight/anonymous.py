"""A machine with anonymous memory, as one has it who did not think of snapshots: its RAM must be written out.

Booted by hand with the guest, the size and the devices of a machine of the daemon's.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from scripts.benchmarks.host import Host
from scripts.benchmarks.http import Connection
from scripts.benchmarks.straight.machine import connected, kill, spawn
from scripts.benchmarks.straight.qemu import QemuClone, plain_command_line, ram_backend


class AnonymousCloudHypervisor:
    """``vm.snapshot`` writes all of the RAM into a directory."""

    def __init__(self, config: dict[str, Any], directory: Path) -> None:
        memory = config["memory"]["zones"][0]["size"]
        self._config = {**config, "memory": {"size": memory}, "serial": {"mode": "Tty"}}
        self._directory = directory
        self._directory.mkdir()
        path = directory / "api.sock"
        self._pid = spawn(["cloud-hypervisor", "--api-socket", f"path={path}"], directory / "log")
        connected(path, self._pid).close()
        self._api = Connection(path)
        self._api.call("PUT", "/api/v1/vm.create", self._config)
        self._api.call("PUT", "/api/v1/vm.boot")

    def snapshot_ms(self) -> float:
        """How long the guest stood still."""
        target = self._directory / "snapshot"
        target.mkdir()
        began = time.perf_counter()
        self._api.call("PUT", "/api/v1/vm.pause")
        self._api.call("PUT", "/api/v1/vm.snapshot", {"destination_url": f"file://{target}"})
        self._api.call("PUT", "/api/v1/vm.resume")
        took_ms = (time.perf_counter() - began) * 1000
        shutil.rmtree(target)
        return took_ms

    def end(self) -> None:
        """Kill it; its directory goes."""
        kill(self._pid)
        shutil.rmtree(self._directory, ignore_errors=True)


class AnonymousQemu(QemuClone):
    """``migrate`` writes all of the RAM that is not zero into a file."""

    def __init__(self, argv: list[str], directory: Path) -> None:
        super().__init__(argv, Path(), directory)
        self._directory.mkdir()
        path = directory / "qmp.sock"
        argv = [each.replace("@DIRECTORY@", str(directory)) for each in argv]
        self._pid = spawn([*argv, "-qmp", f"unix:{path},server=on,wait=off"], directory / "log")
        self._qmp = connected(path, self._pid)
        self._next("QMP")
        self.execute("qmp_capabilities")
        self.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        unlimited: dict[str, Any] = {"max-bandwidth": 1 << 40}
        self.execute("migrate-set-parameters", **unlimited)
        self.resume()

    def snapshot_ms(self) -> float:
        """How long the guest stood still."""
        target = self._directory / "snapshot"
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self.execute("getfd", send=[fd], fdname="snapshot")
        finally:
            os.close(fd)
        began = time.perf_counter()
        self.pause()
        self.execute("migrate", uri="fd:snapshot")
        while (event := self._next("event")).get("data", {}).get("status") != "completed":
            if event.get("data", {}).get("status") == "failed":
                raise RuntimeError("QEMU's migration to a file failed")
        self._resume_when_finalized()
        took_ms = (time.perf_counter() - began) * 1000
        target.unlink()
        return took_ms

    def _resume_when_finalized(self) -> None:
        """QEMU says 'completed' some moments before it lets go of the migration."""
        while True:
            try:
                return self.resume()
            except RuntimeError as error:
                if "not finalized" not in str(error):
                    raise


def anonymous(host: Host, runtime: str, instance_id: str, directory: Path) -> AnonymousCloudHypervisor | AnonymousQemu:
    """A machine like a cold-booted one of the daemon's."""
    instance = host.directory_of(instance_id)
    if runtime != "qemu":
        with Connection(next(instance.glob("cloud-hypervisor-*.sock"))) as api:
            return AnonymousCloudHypervisor(api.call("GET", "/api/v1/vm.info")["config"], directory)
    argv = plain_command_line(host.status(instance_id)["pid"], instance)
    backend = {"qom-type": "memory-backend-ram", "id": "ram", "size": ram_backend(argv)["size"]}
    kept = [
        json.dumps(backend) if each.startswith("{") and json.loads(each).get("id") == "ram" else each for each in argv
    ]
    return AnonymousQemu(kept, directory)
