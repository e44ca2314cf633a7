"""What a parked clone takes, the daemon's share included, and whether the last is parked as quickly as the first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.benchmarks.host import Host
from scripts.benchmarks.measure import Case, Sample
from scripts.benchmarks.parked import parked
from scripts.benchmarks.row import NotHere, Row

RUNTIME = "cloud-hypervisor"
AIM_MB = 2.5
AIM_LAST = 1.2
_MANY, _FEW = 1000, 100
_RESERVE_MB = 2000
_MB = 1e6


def run(host: Host) -> Iterator[Case]:
    if RUNTIME not in host.runtimes:
        raise NotHere(f"{RUNTIME} does not run here")
    artifact = host.snapshot(RUNTIME)
    daemon = [(0, _resident_mb(host))]
    counts = (_FEW,) if host.quick else (_FEW, _MANY)
    for count in counts:
        before_mb = _available_mb()
        if before_mb - count * AIM_MB < _RESERVE_MB:
            raise NotHere(f"{before_mb:.0f} MB are available: too little for {count} clones")
        with parked(host, artifact, RUNTIME, count):
            each_mb = (before_mb - _available_mb()) / count
            daemon.append((count, _resident_mb(host)))
            first, last = _first_and_last(host)
        yield Case(
            what=f"memory of a parked clone, {count} of them",
            stop_line="MemAvailable, before and after, over the number",
            ours=Sample([each_mb]),
            unit="MB",
            at_most_value=AIM_MB,
            notes=("resident memory of the daemon: " + ", ".join(f"{mb:.0f} MB with {n}" for n, mb in daemon),),
            figures={"daemon_mb": dict(daemon)},
        )
        yield Case(
            what=f"parking the last tenth of {count}",
            stop_line="restored, standing still",
            ours=last,
            baseline=first,
            baseline_is="the first tenth",
            at_most=AIM_LAST,
        )


def _first_and_last(host: Host) -> tuple[Sample, Sample]:
    """Milliseconds that the first and the last tenth took to be parked."""
    machines: list[dict[str, Any]] = host.control.call("GET", "/instances?status=parked")["instances"]
    took_ms = [each["metrics"]["start"]["total_ms"] for each in machines]
    tenth = max(1, len(took_ms) // 10)
    return Sample(took_ms[:tenth]), Sample(took_ms[-tenth:])


def _available_mb() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / _MB
    raise NotHere("/proc/meminfo has no MemAvailable")


def _resident_mb(host: Host) -> float:
    for line in Path(f"/proc/{host.daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / _MB
    raise NotHere("the daemon is gone")


ROW = Row(name="density", title="thousands of parked clones", run=run)
