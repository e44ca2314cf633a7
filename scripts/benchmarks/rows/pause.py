"""How long a guest stands still for a snapshot, small and large, beside writing its RAM out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.benchmarks.host import Host
from scripts.benchmarks.measure import Case, Sample
from scripts.benchmarks.row import Row
from scripts.benchmarks.straight.anonymous import anonymous

SIZES_MIB = (256, 4096)
AIM_MS = 20.0


def run(host: Host) -> Iterator[Case]:
    for runtime in host.runtimes:
        for mib in SIZES_MIB:
            rounds = host.rounds(20, 5)
            by_hand = _by_hand(host, runtime, mib, host.rounds(3, 1))
            originals, clones = [], []
            for number in range(rounds):
                instance_id = host.start(host.artifact(mib=mib), runtime=runtime)
                host.wait_for_line(instance_id)
                originals.append(_snapshot(host, instance_id, f"{runtime}-original-{mib}-{number}"))
                clones.append(_snapshot(host, instance_id, f"{runtime}-clone-{mib}-{number}"))
                host.remove(instance_id)
            for what, taken in (("cold-booted", originals), ("a clone", clones)):
                yield Case(
                    what=f"snapshot pause, {runtime}, {mib} MiB, {what}",
                    stop_line="vCPUs resumed, by the daemon's clock",
                    ours=Sample(taken),
                    baseline=by_hand,
                    baseline_is=f"anonymous RAM, hardly used: {_BY_HAND[runtime]}",
                    at_most_value=AIM_MS,
                )


_BY_HAND = {"cloud-hypervisor": "pause, vm.snapshot to a disk, resume", "qemu": "stop, migrate to a file, cont"}


def _snapshot(host: Host, instance_id: str, tag: str) -> float:
    reply = host.control.call("POST", "/snapshot", {"instance_id": instance_id, "tag": tag})
    return float(reply["pause_ms"])


def _by_hand(host: Host, runtime: str, mib: int, rounds: int) -> Sample:
    pattern = host.start(host.artifact(mib=mib), runtime=runtime)
    with TemporaryDirectory(prefix="ovms-bench-") as directory:
        try:
            machine = anonymous(host, runtime, pattern, Path(directory) / "anonymous")
        finally:
            host.remove(pattern)
        try:
            return Sample([machine.snapshot_ms() for _ in range(rounds)])
        finally:
            machine.end()


ROW = Row(name="pause", title="pause of a snapshot, by size of RAM", run=run)
