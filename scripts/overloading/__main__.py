"""Set each kind of client upon a daemon and tell how it fared."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scripts.benchmarks.http import Connection, HttpError
from scripts.demo.daemon import Daemon, private_daemon
from scripts.overloading.clients import KINDS, Aim

_GUEST_BUILD = Path(__file__).parents[2] / "tests" / "guest" / "build"
_RECOVERY_S = 120.0
_HEADER = ("clients", "health p50 ms", "p99 ms", "max ms", "failed", "RSS peak MiB", "took s", "recovery s", "told")


@dataclass
class Health:
    """The process that asks for it."""

    process: subprocess.Popen[str]

    def since_last(self) -> dict[str, float]:
        stdin, stdout = self._pipes()
        stdin.write("\n")
        stdin.flush()
        said: dict[str, float] = json.loads(stdout.readline())
        return said

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("it has no pipes")
        return self.process.stdin, self.process.stdout


@contextmanager
def health_of(socket: Path) -> Iterator[Health]:
    command = [sys.executable, "-m", "scripts.overloading.health", str(socket)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Health(process)
        finally:
            process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/overload", description=__doc__)
    parser.add_argument("--starts", type=int, default=256, help="how many starts at once (256)")
    parser.add_argument("--only", action="append", choices=KINDS, help="this kind of client; may be repeated")
    parser.add_argument("--list", action="store_true", help="tell which kinds there are")
    given = parser.parse_args()
    if given.list:
        for name, clients in KINDS.items():
            print(f"{name:12} {clients.__doc__}")
        return 0
    with private_daemon(parent=Path("/dev/shm")) as daemon, health_of(daemon.socket) as health:
        kernel = daemon.home / "guest.elf"
        subprocess.run([_GUEST_BUILD, kernel], check=True, timeout=60)
        daemon.ovm("pack", "-t", "overload:guest", "--kernel", str(kernel), "--memory", "16M")
        aim = Aim(daemon.socket, "overload:guest", given.starts)
        rows = [_nobody(daemon, health)]
        for name in given.only or KINDS:
            print(f"{name} …", file=sys.stderr, flush=True)
            rows.append(_measure(name, aim, daemon, health))
    _print(rows)
    return 0


def _nobody(daemon: Daemon, health: Health) -> tuple[str, ...]:
    _forget_peak(daemon)
    health.since_last()
    time.sleep(3)
    return _row("(nobody)", daemon, health, 3.0, 0.0, "")


def _measure(name: str, aim: Aim, daemon: Daemon, health: Health) -> tuple[str, ...]:
    _forget_peak(daemon)
    health.since_last()
    began = time.monotonic()
    told = asyncio.run(KINDS[name](aim))
    ended = time.monotonic()
    _wait_until_well(aim)
    well = time.monotonic()
    words = ", ".join(f"{count} × {what}" for what, count in told.most_common())
    row = _row(name, daemon, health, ended - began, well - ended, words)
    _remove_all(daemon)
    return row


def _row(name: str, daemon: Daemon, health: Health, took_s: float, recovery_s: float, told: str) -> tuple[str, ...]:
    said = health.since_last()
    return (
        name,
        *(f"{said[each]:.1f}" for each in ("p50", "p99", "max")),
        f"{said['failed']:.0f} of {said['asked']:.0f}",
        f"{_peak_mib(daemon):.0f}",
        f"{took_s:.1f}",
        f"{recovery_s:.2f}",
        told,
    )


def _wait_until_well(aim: Aim) -> None:
    """Until a start works."""
    deadline = time.monotonic() + _RECOVERY_S
    while time.monotonic() < deadline:
        with suppress(HttpError, OSError), Connection(aim.socket) as connection:
            made = connection.call("POST", "/start?wait=running", {"manifest": aim.artifact})
            connection.call("DELETE", f"/instances/{made['instance_id']}?force=true")
            return
        time.sleep(0.05)
    raise SystemExit(f"no start works {_RECOVERY_S:g} s after the clients have gone")


def _remove_all(daemon: Daemon) -> None:
    with Connection(daemon.socket) as connection:
        for each in connection.call("GET", "/instances?all=true")["instances"]:
            connection.call("DELETE", f"/instances/{each['instance_id']}?force=true")


def _forget_peak(daemon: Daemon) -> None:
    Path(f"/proc/{daemon.pid}/clear_refs").write_text("5")


def _peak_mib(daemon: Daemon) -> float:
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _print(rows: list[tuple[str, ...]]) -> None:
    table = [_HEADER, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADER))]
    for row in table:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
