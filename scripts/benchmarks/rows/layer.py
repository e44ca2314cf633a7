"""A snapshot of a clone that dirtied 1 % of 1 GiB, beside a snapshot of all of it: bytes and time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.benchmarks.host import Host
from scripts.benchmarks.measure import Case, Sample
from scripts.benchmarks.row import Row

MIB = 1024
DIRTY_PAGES = MIB * 256 // 100
AIM = 0.05
_FILLED_FROM = 2 << 20
"""Where the guest begins to write a word a page; below lies what it uses itself."""
_BLOCK_BYTES = 4 << 20
_RANDOM_SHARE = 0.36


def run(host: Host) -> Iterator[Case]:
    for runtime in host.runtimes:
        full, layer = [], []
        for number in range(host.rounds(3, 1)):
            original = host.start(host.artifact(mib=MIB), runtime=runtime, kernel_args=f"dirty={DIRTY_PAGES}")
            host.wait_for_line(original)
            _fill(host.daemon.image_dir / "instances" / original / "ram")
            full.append(_snapshot(host, original, f"{runtime}-full-{number}"))
            host.remove(original)
            clone = host.start(f"bench-{MIB}:{runtime}-full-{number}", runtime=runtime)
            time.sleep(0.3)  # some ticks, at each of which it writes to the same pages
            layer.append(_snapshot(host, clone, f"{runtime}-layer-{number}"))
            host.remove(clone)
        for what, unit, values, baseline in (
            ("time", "ms", [each[0] for each in layer], [each[0] for each in full]),
            ("bytes", "KiB", [each[1] for each in layer], [each[1] for each in full]),
        ):
            yield Case(
                what=f"snapshot of a clone that dirtied 1 % of {MIB} MiB, {what}, {runtime}",
                stop_line="reply to POST /snapshot: stored and named",
                ours=Sample(values),
                baseline=Sample(baseline),
                baseline_is="snapshot of all of it",
                unit=unit,
                at_most=AIM,
                figures={"phases_ms": layer[-1][2], "phases_of_full_ms": full[-1][2]},
            )


def _fill(ram: Path) -> None:
    """Content that compresses to about 36 %, also of the pages that the guest writes to."""
    random = int(4096 * _RANDOM_SHARE)
    block = b"".join(os.urandom(random) + bytes(range(256)) * 16 for _ in range(_BLOCK_BYTES // 4096))
    pages = b"".join(block[at : at + 4096] for at in range(0, len(block), 4096 + random))
    with ram.open("r+b", 0) as file:
        for at in range(_FILLED_FROM, ram.stat().st_size, len(pages)):
            os.pwrite(file.fileno(), pages[: ram.stat().st_size - at], at)


def _snapshot(host: Host, instance_id: str, tag: str) -> tuple[float, float, Any]:
    """Milliseconds, KiB of the RAM's blob, phases."""
    began = time.perf_counter()
    reply = host.control.call("POST", "/snapshot", {"instance_id": instance_id, "tag": tag})
    took_ms = (time.perf_counter() - began) * 1000
    blobs = Path(host.daemon.environment["OVMS_ROOT"]) / "blobs" / "sha256"
    manifest = json.loads((blobs / reply["snapshot_ref"].removeprefix("sha256:")).read_text())
    (own,) = (layer for layer in manifest["layers"] if layer["annotations"].get(_TITLE) == "ram.lz4")
    return took_ms, own["size"] / 1024, reply["phases"]


_TITLE = "org.opencontainers.image.title"

ROW = Row(name="layer", title="snapshot of a clone, by what it dirtied", run=run)
