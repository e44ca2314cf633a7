"""A daemon of one's own for as long as a context lasts; afterwards nothing of it is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Daemon:
    """Where it is, and the environment in which ``ovm`` means it."""

    home: Path
    """Its temporary directory, which holds its store (``root``) and its run directory (``run``)."""
    pid: int
    socket: Path
    image_dir: Path
    environment: dict[str, str]

    def ovm(self, *arguments: str) -> str:
        """Run ``ovm`` against it; what it prints on stdout. Raises CalledProcessError."""
        return _ovm(self.environment, *arguments)


@contextmanager
def private_daemon(settings: Mapping[str, str] | None = None, *, parent: Path | None = None) -> Iterator[Daemon]:
    """Start one with a store and a run directory of its own in a new temporary directory.

    ``settings`` are more variables of its environment (``OVMS_…``); ``parent`` is where the directory is made.
    On the way out its machines are ended, the daemon is stopped, and the directory and its tmpfs images are removed.
    """
    home = Path(tempfile.mkdtemp(prefix="ovms-quickstart-", dir=parent))
    # Nothing that the user has configured for a daemon of their own, but for where the runtimes are.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OVMS_") or name.startswith("OVMS_RUNTIMES_")
    }
    environment |= {
        "OVMS_CONFIG": os.devnull,
        "OVMS_ROOT": str(home / "root"),
        "OVMS_RUN_DIR": str(home / "run"),
        "OVMS_ON_EXIT": "stop",
        **(settings or {}),
    }
    images: Path | None = None
    pid: int | None = None
    try:
        values = json.loads(_ovm(environment, "config", "--format", "json"))["values"]
        images = Path(values["image_dir"]["value"])
        pid = int(_ovm(environment, "serve", "--detach"))
        yield Daemon(home, pid, Path(values["socket"]["value"]), images, environment)
    finally:
        try:
            _ovm(environment, "serve", "--stop")
            left = []
        except subprocess.CalledProcessError:  # it never ran, or crashed, or hangs
            left = [pid] if pid else []
        for each in (*left, *processes_of(home)):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        for directory in (home, images):
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)


def _ovm(environment: dict[str, str], *arguments: str) -> str:
    return subprocess.run(
        ["ovm", *arguments], env=environment, check=True, text=True, stdin=subprocess.DEVNULL, capture_output=True
    ).stdout


def processes_of(home: Path) -> list[int]:
    """What runs in that directory: a daemon's machines have it in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and os.fsencode(home) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found
