"""Many starts at once, beside the straight script run by as many threads as there are cores."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from scripts.benchmarks.host import Host
from scripts.benchmarks.http import Connection, exchange_all, request_bytes
from scripts.benchmarks.measure import Case, Sample, alternate
from scripts.benchmarks.row import Row
from scripts.benchmarks.straight.clones import Clones, clones_by_hand
from scripts.benchmarks.straight.machine import Straight

AIM = 1.2
MEMORY_SHARE = 0.5
PROCESS_MIB = {"cloud-hypervisor": 4, "qemu": 24}
"""What a clone of the test guest takes at most, for a burst that fits."""


def run(host: Host) -> Iterator[Case]:
    for runtime in host.runtimes:
        artifact = host.snapshot(runtime)
        by_hand = clones_by_hand(host, runtime, artifact)
        for size in (16, 64, 256) if not host.quick else (16, 64):
            if size * PROCESS_MIB[runtime] > MEMORY_SHARE * _available_mib():
                continue
            latencies: list[float] = []
            taken = alternate(
                {
                    "ours": lambda: _ours(host, artifact, runtime, size, latencies),  # noqa: B023
                    "straight": lambda: _straight(by_hand, size),  # noqa: B023
                },
                host.rounds(max(2, 96 // size), 1),
                warm_up=0 if host.quick else 1,
            )
            each = Sample(latencies)
            yield Case(
                what=f"burst of {size}, {runtime}",
                stop_line="last reply 201 'running' | last vCPUs resumed",
                ours=taken["ours"],
                baseline=taken["straight"],
                baseline_is=f"straight script, {os.cpu_count()} threads",
                at_most=AIM,
                notes=(f"single starts: p50 {each.p50:.0f}, p95 {each.p95:.0f}, p99 {each.p99:.0f} ms",),
            )


def _ours(host: Host, artifact: str, runtime: str, size: int, latencies: list[float]) -> float:
    request = request_bytes("POST", "/start?wait=running", {"manifest": artifact, "overrides": {"runtime": runtime}})
    connections = [Connection(host.daemon.socket) for _ in range(size)]
    waiting = set(range(size))

    def once(number: int) -> bytes | None:
        if number in waiting:
            waiting.discard(number)
            return request
        return None

    try:
        began = time.perf_counter()
        times_ms, replies = exchange_all(connections, once)
        took_ms = (time.perf_counter() - began) * 1000
    finally:
        for connection in connections:
            connection.close()
    assert all(status == 201 for status, _ in replies), replies
    latencies += times_ms
    host.remove(*(content.split(b'"instance_id":"', 1)[1][:36].decode() for _, content in replies))
    return took_ms


def _straight(by_hand: Clones, size: int) -> float:
    clones: list[Straight] = [by_hand.clone() for _ in range(size)]
    try:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            began = time.perf_counter()
            list(threads.map(lambda clone: clone.start(), clones))
            return (time.perf_counter() - began) * 1000
    finally:
        for clone in clones:
            clone.end()


def _available_mib() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


ROW = Row(name="burst", title="many starts at once", run=run)
