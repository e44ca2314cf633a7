"""A RAM image from its blob in the store into locked tmpfs, verified, beside sha256sum and lz4."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from cache.resident import ResidentImages
from scripts.benchmarks.host import Host
from scripts.benchmarks.measure import Case, alternate
from scripts.benchmarks.ram_image import BlobOfRam, make_blob
from scripts.benchmarks.row import NotHere, Row
from spec.errors import MlockLimit
from spec.sizes import MIB

AIM = 0.4
_TMPFS = Path("/dev/shm")
_LIMIT_S = 120


def run(host: Host) -> Iterator[Case]:
    if shutil.which("lz4") is None:
        raise NotHere("needs the lz4 command")
    for scattered in (False, True):
        with (
            TemporaryDirectory(prefix="ovms-bench-load-") as disk,
            TemporaryDirectory(prefix="ovms-bench-load-", dir=_TMPFS) as tmpfs,
            asyncio.Runner() as runner,
        ):
            blob = make_blob(Path(disk) / "image", scattered=scattered)
            images = ResidentImages(Path(tmpfs) / "images", mlock="required")
            runner.run(images.open())
            try:
                taken = alternate(
                    {
                        "ours": lambda: runner.run(_ours(images, blob)),  # noqa: B023 - called within this turn
                        "lz4": lambda: _by_hand(blob, Path(tmpfs) / "ram"),  # noqa: B023
                    },
                    host.rounds(11, 3),
                )
            finally:
                runner.run(images.close())
            size = blob.encoded.size_bytes
            yield Case(
                what=f"load of 1 GiB, {'every 4th page zero' if scattered else 'no page zero'}",
                stop_line="verified, locked | lz4 has ended",
                ours=taken["ours"],
                baseline=taken["lz4"],
                baseline_is="sha256sum BLOB; lz4 -d BLOB to the same tmpfs",
                at_most=AIM,
                notes=(f"{size / MIB:.0f} MiB compressed",),
                figures={"blob_bytes": size, "image_bytes": blob.encoded.stored_bytes},
            )


async def _ours(images: ResidentImages, blob: BlobOfRam) -> float:
    began = time.perf_counter()
    try:
        async with images.lease(blob.encoded.digest, blob.path, mlock_required=True, preload=True):
            took_ms = (time.perf_counter() - began) * 1000
    except MlockLimit as error:
        raise NotHere(error.detail) from error
    await images.evict(blob.encoded.digest)
    return took_ms


def _by_hand(blob: BlobOfRam, ram: Path) -> float:
    began = time.perf_counter()
    for command in (["sha256sum", str(blob.path)], ["lz4", "-d", "-q", "-f", str(blob.path), str(ram)]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_LIMIT_S)
    took_ms = (time.perf_counter() - began) * 1000
    ram.unlink()
    return took_ms


ROW = Row(name="load", title="load of a RAM image from the store", run=run)
