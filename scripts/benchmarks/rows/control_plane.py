"""What the API itself costs: status and inject of a running machine, beside aiohttp saying hello on the same loop."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
                    ours, theirs = _alternate(
                        (host.daemon.socket, request),
                        (hello, baseline),
                        connections,
                        host.rounds(20, 3),
                    )
                    yield Case(
                        what=f"{what}, {connections} connection{'s' if connections > 1 else ''}",
                        stop_line="reply read",
                        ours=ours,
                        baseline=theirs,
                        baseline_is=f"aiohttp hello world on {host.event_loop}",
                        at_most=AIM,
                    )
    finally:
        host.remove(instance_id)


@contextmanager
def _hello(host: Host) -> Iterator[Path]:
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
        yield path
    finally:
        server.terminate()
        server.wait(10)
        log.close()


def _alternate(
    ours: tuple[Path, bytes], theirs: tuple[Path, bytes], connections: int, seconds: float
) -> tuple[Sample, Sample]:
    """Both sides in turns, for some seconds in all."""
    taken: tuple[list[float], list[float]] = ([], [])
    sides = [
        ([Connection(path) for _ in range(connections)], request, times)
        for (path, request), times in zip((ours, theirs), taken, strict=True)
    ]
    turn_s = seconds / (2 * (1 + TURNS))
    try:
        for number in range(-1, TURNS):  # the first turn warms up
            for opened, request, times in sides if number % 2 else reversed(sides):
                milliseconds, replies = exchange_all(opened, _until(time.perf_counter() + turn_s, request))
                assert {status for status, _ in replies} == {200}, replies[0]
                if number >= 0:
                    times += milliseconds
    finally:
        for opened, *_ in sides:
            for each in opened:
                each.close()
    return Sample(taken[0]), Sample(taken[1])


def _until(end: float, request: bytes) -> Callable[[int], bytes | None]:
    return lambda _: request if time.perf_counter() < end else None


ROW = Row(name="api", title="the control plane", run=run)
