"""What the API itself costs: status and inject of a running machine, beside aiohttp saying hello on the same loop."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmarks.cpu import cpu_s
from scripts.benchmarks.host import Host
from scripts.benchmarks.http import Connection, exchange_all, request_bytes
from scripts.benchmarks.measure import Case, Sample
from scripts.benchmarks.row import NotHere, Row

AIM = 1.5
TURNS = 5


def run(host: Host) -> Iterator[Case]:
    if not host.runtimes:
        raise NotHere("no runtime runs here")
    instance_id = host.start(host.artifact(ivshmem=True), runtime=host.runtimes[-1])
    try:
        host.control.call("POST", "/pause", {"instance_id": instance_id})  # the guest's own work is not the question
        inject = {"instance_id": instance_id, "content": {"mmio": {"device": "mmio0", "data": "aGVsbG8="}}}
        with _hello(host) as hello:
            for connections in (1, 64):
                for what, request, baseline in (
                    ("GET /status", request_bytes("GET", f"/status/{instance_id}"), request_bytes("GET", "/hello")),
                    ("POST /inject", request_bytes("POST", "/inject", inject), request_bytes("POST", "/hello", inject)),
                ):
                    ours, theirs = (
                        _Side(host.daemon.pid, host.daemon.socket, request, connections),
                        _Side(*hello, baseline, connections),
                    )
                    _alternate(ours, theirs, host.rounds(20, 3))
                    yield Case(
                        what=f"{what}, {connections} connection{'s' if connections > 1 else ''}",
                        stop_line="reply read",
                        ours=Sample(ours.times_ms),
                        baseline=Sample(theirs.times_ms),
                        baseline_is=f"aiohttp hello world on {host.event_loop}",
                        at_most=AIM,
                        notes=(
                            f"server's processor time per request {ours.cpu_us:.0f} µs, baseline's {theirs.cpu_us:.0f}",
                        ),
                        figures={"cpu_us": ours.cpu_us, "baseline_cpu_us": theirs.cpu_us},
                    )
    finally:
        host.remove(instance_id)


@contextmanager
def _hello(host: Host) -> Iterator[tuple[int, Path]]:
    path = host.daemon.home / "hello.sock"
    log = (host.daemon.home / "hello.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "scripts.benchmarks.hello", str(path), host.event_loop], stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + 30
        while not path.exists():
            if time.monotonic() > deadline or server.poll() is not None:
                raise NotHere("the hello-world server does not start")
            time.sleep(0.02)
        yield server.pid, path
    finally:
        server.terminate()
        server.wait(10)
        log.close()


class _Side:
    """A server under one kind of request, on some connections."""

    def __init__(self, pid: int, socket: Path, request: bytes, connections: int) -> None:
        self._pid = pid
        self._request = request
        self._connections = [Connection(socket) for _ in range(connections)]
        self._cpu_s = 0.0
        self.times_ms: list[float] = []

    @property
    def cpu_us(self) -> float:
        """What the server computed for a request."""
        return self._cpu_s / max(1, len(self.times_ms)) * 1e6

    def turn(self, seconds: float, *, counted: bool) -> None:
        """Ask for some seconds."""
        before = cpu_s(self._pid)
        milliseconds, replies = exchange_all(self._connections, _until(time.perf_counter() + seconds, self._request))
        assert {status for status, _ in replies} == {200}, replies[0]
        if counted:
            self._cpu_s += cpu_s(self._pid) - before
            self.times_ms += milliseconds

    def close(self) -> None:
        """Close the connections."""
        for each in self._connections:
            each.close()


def _alternate(ours: _Side, theirs: _Side, seconds: float) -> None:
    """Both sides in turns, for some seconds in all."""
    try:
        for number in range(-1, TURNS):  # the first turn warms up
            for side in (ours, theirs) if number % 2 else (theirs, ours):
                side.turn(seconds / (2 * (1 + TURNS)), counted=number >= 0)
    finally:
        ours.close()
        theirs.close()


def _until(end: float, request: bytes) -> Callable[[int], bytes | None]:
    return lambda _: request if time.perf_counter() < end else None


ROW = Row(name="api", title="the control plane", run=run)
