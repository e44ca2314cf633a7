"""The host under test: a daemon of its own, artifacts of the test guest, and snapshots of it per runtime."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scripts.benchmarks.http import Connection, HttpError
from scripts.demo.daemon import Daemon, private_daemon

RUNTIMES = ("cloud-hypervisor", "qemu")
GUEST_MIB = 256

_GUEST_BUILD = Path(__file__).parents[2] / "tests" / "guest" / "build"
_TMPFS = Path("/dev/shm")
_FIRST_LINE_S = 30.0
_LOOK_S = 0.02


@dataclass(slots=True)
class Host:
    """What rows are measured on. One connection for what is not measured is in ``control``."""

    daemon: Daemon
    control: Connection
    quick: bool
    event_loop: str
    runtimes: tuple[str, ...]
    """Those that run here."""
    _artifacts: set[str] = field(default_factory=set)

    def rounds(self, many: int, few: int) -> int:
        """How many samples to take."""
        return few if self.quick else many

    def artifact(self, *, mib: int = GUEST_MIB, ivshmem: bool = False) -> str:
        """The test guest as an artifact, packed once."""
        name = f"bench-{mib}{'-shm' if ivshmem else ''}:cold"
        if name not in self._artifacts:
            kernel = self.daemon.home / "guest.elf"
            if not kernel.exists():
                subprocess.run([_GUEST_BUILD, kernel], check=True, timeout=60)
            devices = ["--ivshmem", "mmio0:64K"] if ivshmem else []
            self.daemon.ovm("pack", "-t", name, "--kernel", str(kernel), "--memory", f"{mib}M", *devices)
            self._artifacts.add(name)
        return name

    def snapshot(self, runtime: str, *, mib: int = GUEST_MIB, ivshmem: bool = False) -> str:
        """The test guest in the middle of its life, as a resident artifact for a runtime; made once."""
        cold = self.artifact(mib=mib, ivshmem=ivshmem)
        name = cold.replace(":cold", f":{runtime}")
        if name not in self._artifacts:
            original = self.start(cold, runtime=runtime)
            self.wait_for_line(original)
            self.control.call("POST", "/snapshot", {"instance_id": original, "tag": runtime})
            self.remove(original)
            self._artifacts.add(name)
        return name

    def start(self, manifest: str, **overrides: object) -> str:
        """Start, wait until it runs; the id."""
        body = {"manifest": manifest, "overrides": overrides}
        return str(self.control.call("POST", "/start?wait=running", body)["instance_id"])

    def status(self, instance_id: str) -> dict[str, Any]:
        """What ``GET /status`` says."""
        found: dict[str, Any] = self.control.call("GET", f"/status/{instance_id}")
        return found

    def remove(self, *instance_ids: str) -> None:
        """End machines by force and forget them."""
        for each in instance_ids:
            self.control.call("DELETE", f"/instances/{each}?force=true")

    def directory_of(self, instance_id: str) -> Path:
        """Where the instance has its console and the sockets of its VMM."""
        return self.daemon.home / "run" / "instances" / instance_id

    def wait_for_line(self, instance_id: str) -> None:
        """Return when the guest has said something."""
        console = self.directory_of(instance_id) / "console.log"
        deadline = time.monotonic() + _FIRST_LINE_S
        while b"tick" not in console.read_bytes():
            if time.monotonic() > deadline:
                raise HttpError(f"the guest of {instance_id} says nothing")
            time.sleep(_LOOK_S)


@contextmanager
def host(*, quick: bool, event_loop: str, isolation: str) -> Iterator[Host]:
    """A daemon with nothing in it; it and all that it started are gone afterwards.

    As on a real host, the run dir and the images are on a tmpfs, the store is on a disk.
    """
    with (
        TemporaryDirectory(prefix="ovms-bench-") as root,
        private_daemon(
            {"OVMS_ROOT": root, "OVMS_EVENT_LOOP": event_loop, "OVMS_ISOLATION": isolation}, parent=_TMPFS
        ) as daemon,
        Connection(daemon.socket) as control,
    ):
        made = Host(daemon, control, quick, event_loop, ())
        made.runtimes = tuple(each for each in RUNTIMES if _runs(made, each))
        yield made


def _runs(made: Host, runtime: str) -> bool:
    """Whether a start that names the runtime works: the daemon is asked, who else would know."""
    with suppress(HttpError):
        made.remove(made.start(made.artifact(), runtime=runtime))
        return True
    return False
