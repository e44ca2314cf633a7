"""A start of a resident artifact, nothing parked, over HTTP, beside the same by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator

from scripts.benchmarks.host import Host
from scripts.benchmarks.http import request_bytes
from scripts.benchmarks.measure import Case, alternate
from scripts.benchmarks.row import Row
from scripts.benchmarks.straight.clones import Clones, clones_by_hand

AIM = 1.25


def run(host: Host) -> Iterator[Case]:
    for runtime in host.runtimes:
        artifact = host.snapshot(runtime)
        by_hand = clones_by_hand(host, runtime, artifact)
        taken = alternate(
            {
                "ours": lambda: _ours(host, artifact, runtime),  # noqa: B023 - called within this turn
                "straight": lambda: _straight(by_hand),  # noqa: B023
            },
            host.rounds(100, 25),
        )
        yield Case(
            what=f"start, {runtime}",
            stop_line="reply 201 'running' | vCPUs resumed",
            ours=taken["ours"],
            baseline=taken["straight"],
            baseline_is="straight script: spawn, restore",
            at_most=AIM,
            figures={"phases_ms": _phases(host, artifact, runtime)},
        )


def _ours(host: Host, artifact: str, runtime: str) -> float:
    request = request_bytes("POST", "/start?wait=running", {"manifest": artifact, "overrides": {"runtime": runtime}})
    began = time.perf_counter()
    status, content = host.control.exchange(request)
    took_ms = (time.perf_counter() - began) * 1000
    assert status == 201, content
    host.remove(content.split(b'"instance_id":"', 1)[1][:36].decode())
    return took_ms


def _straight(by_hand: Clones) -> float:
    clone = by_hand.clone()
    try:
        began = time.perf_counter()
        clone.start()
        return (time.perf_counter() - began) * 1000
    finally:
        clone.end()


def _phases(host: Host, artifact: str, runtime: str) -> object:
    """Of one start: where its time goes."""
    instance_id = host.start(artifact, runtime=runtime)
    try:
        return host.status(instance_id)["metrics"]["start"]
    finally:
        host.remove(instance_id)


ROW = Row(name="start", title="start of a resident artifact, not parked", run=run)
