"""The main job as a user does it, by the CLI on a real Linux guest: pack, run, snapshot, clone, stop, remove."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.demo.build import DemoFiles
from scripts.demo.daemon import Daemon, private_daemon, processes_of
from scripts.demo.line import DemoLine, parse
from scripts.demo.store import pack_demo

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

CLONES = 3


def status(daemon: Daemon, machine: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.ovm("status", machine, "--format", "json"))
    return found


@contextmanager
def console(daemon: Daemon, machine: str) -> Iterator[Iterator[str]]:
    """The lines of ``ovm logs -f``."""
    command = ["ovm", "logs", "-f", machine]
    with subprocess.Popen(
        command, env=daemon.environment, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            yield (line.rstrip("\r\n") for line in process.stdout)
        finally:
            process.terminate()


def wait_for(daemon: Daemon, machine: str, fits: Callable[[DemoLine], bool]) -> DemoLine:
    with console(daemon, machine) as lines:
        seen = []
        for text in lines:
            seen.append(text)
            line = parse(text)
            if line is not None and fits(line):
                return line
    pytest.fail(f"the console of {machine} ended without that line: {seen[-5:]}")


def check_is_clone(daemon: Daemon, clone: str, identity: int, snapshot: DemoLine) -> None:
    """It goes on from the snapshot's moment, and finds on its disk what only it was told to write."""
    first = wait_for(daemon, clone, lambda _: True)
    assert first.nonce == snapshot.nonce
    assert snapshot.counter < first.counter <= snapshot.counter + 5
    daemon.ovm("inject", clone, "mmio0", "--data-hex", identity.to_bytes(4, "little").hex())
    line = wait_for(daemon, clone, lambda line: line.id == identity)
    later = wait_for(daemon, clone, lambda each: each.counter > line.counter)
    assert later.counter == line.counter + 1
    assert line.disk_is_its_own
    assert later.disk_is_its_own


def check_memory_is_shared(daemon: Daemon, clone: str) -> None:
    """By the kernel's word, not the daemon's: guest RAM is a private mapping of a file that others map too."""
    info = status(daemon, clone)
    mappings = Path(f"/proc/{info['pid']}/maps").read_text().splitlines()
    images = [line.split(maxsplit=5) for line in mappings if str(daemon.image_dir) in line and line.endswith("/ram")]
    assert images, "the RAM image is not mapped at all"
    assert all(fields[1].endswith("p") for fields in images)
    memory = info["metrics"]["memory"]
    assert memory["total_bytes"] == 256 << 20
    assert 0 < memory["shared_bytes"] < memory["total_bytes"]
    assert memory["private_bytes"] < memory["total_bytes"]


def files_below(*directories: Path) -> list[str]:
    return [str(path) for each in directories if each.exists() for path in each.rglob("*") if not path.is_dir()]


def test_pack_run_snapshot_clone_stop_remove(daemon: Daemon, demo: DemoFiles, tmp_path: Path) -> None:
    digest = pack_demo(demo, "demo:latest", environment=daemon.environment)
    assert digest in daemon.ovm("ls", "--format", "json")
    assert "mmio0" in daemon.ovm("inspect", "demo:latest")

    original = daemon.ovm("run", "demo:latest", "--runtime", "qemu", "--name", "original").strip()
    running = wait_for(daemon, original, lambda line: line.counter >= 2)
    assert running.disk_is_its_own

    snapshot_digest = daemon.ovm("snapshot", "original", "-t", "demo:fastboot").strip()
    assert snapshot_digest in daemon.ovm("ls", "--format", "json")
    goes_on = wait_for(daemon, original, lambda line: line.counter > running.counter + 2)
    assert goes_on.nonce == running.nonce
    assert goes_on.disk_is_its_own
    assert status(daemon, original)["instance_id"] == original

    clones = daemon.ovm("run", "demo:fastboot", "--count", str(CLONES)).split()
    assert len(set(clones)) == CLONES
    moment = min((wait_for(daemon, clone, lambda _: True) for clone in clones), key=lambda line: line.counter)
    at_snapshot = DemoLine(moment.nonce, moment.counter - 1, moment.id, moment.disk, moment.uptime_s)
    assert running.counter <= at_snapshot.counter < goes_on.counter
    assert moment.nonce == running.nonce
    for number, clone in enumerate(clones):
        check_is_clone(daemon, clone, 101 + number, at_snapshot)
        check_memory_is_shared(daemon, clone)
    # All are alive at the same time, and none has seen what another wrote.
    for clone in clones:
        latest = wait_for(daemon, clone, lambda line: line.counter >= at_snapshot.counter + 8)
        assert latest.disk_is_its_own

    daemon.ovm("stop", "original")
    ended = status(daemon, original)
    assert ended["status"] == "stopped"
    assert ended["exit"]["code"] == 0
    assert any("power button" in line for line in ended["exit"]["last_console"])

    tar = tmp_path / "fastboot.tar"
    daemon.ovm("export", "demo:fastboot", str(tar))
    daemon.ovm("rm", "--force", original, *clones)
    assert daemon.ovm("ps", "-aq") == ""
    assert processes_of(daemon.home) == []
    instances = [daemon.home / "run/instances", daemon.home / "root/instances", daemon.image_dir / "instances"]
    assert files_below(*instances, daemon.image_dir / ".staging") == []

    with private_daemon() as elsewhere:  # another store, nothing resident: everything comes out of the tar
        clone = elsewhere.ovm("run", str(tar)).strip()
        check_is_clone(elsewhere, clone, 201, at_snapshot)
        check_memory_is_shared(elsewhere, clone)
    assert not elsewhere.home.exists()
    assert not elsewhere.image_dir.exists()
    assert processes_of(elsewhere.home) == []


def test_a_guest_that_panics_is_noticed(daemon: Daemon, demo: DemoFiles) -> None:
    pack_demo(demo, "demo:latest", environment=daemon.environment)

    args = "console=ttyS0 panic=-1 rdinit=/missing root=/dev/none"
    machine = daemon.ovm("run", "demo:latest", "--runtime", "qemu", "--args", args).strip()
    with console(daemon, machine) as lines:
        assert any("Kernel panic" in line for line in lines)

    ended = status(daemon, machine)
    assert ended["status"] in ("failed", "stopped")
    assert ended["exit"]["reason"]
    assert any("Kernel panic" in line for line in ended["exit"]["last_console"])
    assert processes_of(daemon.home) == []
