"""A claim of a parked clone over HTTP, beside a bare resume, a cold boot of the same guest, and many at once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from scripts.benchmarks.host import Host
from scripts.benchmarks.http import Connection, exchange_all, request_bytes
from scripts.benchmarks.measure import Case, Sample, alternate
from scripts.benchmarks.parked import Parked, parked
from scripts.benchmarks.row import Row
from scripts.benchmarks.straight.clones import clones_by_hand
from scripts.benchmarks.straight.machine import Straight

AIM_MS = 1.0
"""Over the bare resume."""
AIM_OF_COLD = 0.01
AIM_BURST = 1.2
BURST = 64
_FEW = 4


def run(host: Host) -> Iterator[Case]:
    for runtime in host.runtimes:
        yield from _one_by_one(host, runtime)
        yield _burst(host, runtime)


def _one_by_one(host: Host, runtime: str) -> Iterator[Case]:
    artifact = host.snapshot(runtime)
    phases: list[dict[str, float]] = []
    clone = clones_by_hand(host, runtime, artifact).clone()
    try:
        clone.start()
        clone.pause()
        with parked(host, artifact, runtime, _FEW) as pool:
            taken = alternate(
                {
                    "ours": lambda: _claim(pool, runtime, phases),
                    "bare": lambda: _resume(clone),
                    "cold": lambda: _boot(host, runtime),
                },
                host.rounds(100, 25),
            )
    finally:
        clone.end()
    names = dict.fromkeys(name for each in phases for name in each)
    medians = {name: round(Sample([each[name] for each in phases if name in each]).p50, 2) for name in names}
    yield Case(
        what=f"claim, {runtime}",
        stop_line="reply 201 'running' | reply to resume",
        ours=taken["ours"],
        baseline=taken["bare"],
        baseline_is="bare vm.resume" if runtime == "cloud-hypervisor" else "bare cont",
        at_most_value=taken["bare"].p50 + AIM_MS,
        notes=(f"aim: bare + {AIM_MS:g} ms; inside: {medians}",),
        figures={"phases_ms": medians},
    )
    yield Case(
        what=f"claim against cold boot, {runtime}",
        stop_line="reply 201 'running' | reply 201 'running'",
        ours=taken["ours"],
        baseline=taken["cold"],
        baseline_is="POST /start of the same guest without snapshot, which boots in no time: a kernel takes seconds",
        at_most=AIM_OF_COLD,
    )


def _burst(host: Host, runtime: str) -> Case:
    artifact = host.snapshot(runtime)
    by_hand = clones_by_hand(host, runtime, artifact)
    latencies: list[float] = []
    with ExitStack() as stack, parked(host, artifact, runtime, BURST) as pool:
        clones: list[Straight] = []
        for _ in range(BURST):
            clone = by_hand.clone()
            stack.callback(clone.end)
            clone.start()
            clone.pause()
            clones.append(clone)
        taken = alternate(
            {"ours": lambda: _claims(pool, runtime, latencies), "bare": lambda: _resumes(clones)},
            host.rounds(10, 1),
            warm_up=0 if host.quick else 1,
        )
    each = Sample(latencies)
    return Case(
        what=f"burst of {BURST} claims, {runtime}",
        stop_line="last reply 201 'running' | last reply to resume",
        ours=taken["ours"],
        baseline=taken["bare"],
        baseline_is=f"bare resumes, {os.cpu_count()} threads",
        at_most=AIM_BURST,
        notes=(f"single claims: p50 {each.p50:.1f}, p95 {each.p95:.1f}, p99 {each.p99:.1f} ms",),
    )


def _request(pool: Parked, runtime: str) -> bytes:
    body = {"manifest": pool.artifact, "overrides": {"runtime": runtime}}
    return request_bytes("POST", "/start?wait=running", body)


def _claim(pool: Parked, runtime: str, phases: list[dict[str, float]]) -> float:
    pool.full()
    request = _request(pool, runtime)
    began = time.perf_counter()
    status, content = pool.host.control.exchange(request)
    took_ms = (time.perf_counter() - began) * 1000
    phases.append(_claimed(status, content)["phases"])
    pool.host.remove(json.loads(content)["instance_id"])
    return took_ms


def _claimed(status: int, content: bytes) -> dict[str, Any]:
    assert status == 201, content
    start: dict[str, Any] = json.loads(content)["info"]["metrics"]["start"]
    assert start["path"] == "claimed", start
    return start


def _resume(clone: Straight) -> float:
    began = time.perf_counter()
    clone.resume()
    took_ms = (time.perf_counter() - began) * 1000
    clone.pause()
    return took_ms


def _boot(host: Host, runtime: str) -> float:
    artifact = host.artifact()
    began = time.perf_counter()
    instance_id = host.start(artifact, runtime=runtime)
    took_ms = (time.perf_counter() - began) * 1000
    host.remove(instance_id)
    return took_ms


def _claims(pool: Parked, runtime: str, latencies: list[float]) -> float:
    pool.full()
    request = _request(pool, runtime)
    waiting = set(range(BURST))

    def once(number: int) -> bytes | None:
        if number not in waiting:
            return None
        waiting.discard(number)
        return request

    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(pool.host.daemon.socket)) for _ in range(BURST)]
        began = time.perf_counter()
        times_ms, replies = exchange_all(connections, once)
        took_ms = (time.perf_counter() - began) * 1000
    for status, content in replies:
        _claimed(status, content)
    latencies += times_ms
    pool.host.remove(*(json.loads(content)["instance_id"] for _, content in replies))
    return took_ms


def _resumes(clones: list[Straight]) -> float:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        began = time.perf_counter()
        list(threads.map(lambda clone: clone.resume(), clones))
        took_ms = (time.perf_counter() - began) * 1000
        list(threads.map(lambda clone: clone.pause(), clones))
    return took_ms


ROW = Row(name="claim", title="claim of a parked clone", run=run)
