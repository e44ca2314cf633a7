"""A RAM image from its blob in the store into locked tmpfs, verified, beside sha256sum and lz4."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from cache.resident import ResidentImages
from scripts.benchmarks.host import Host
from scripts.benchmarks.image_place import image_place
from scripts.benchmarks.measure import Case, alternate
from scripts.benchmarks.ram_image import BlobOfRam, make_blob
from scripts.benchmarks.row import NotHere, Row
from spec.errors import MlockLimit
from spec.sizes import MIB

AIM = 0.4
_LIMIT_S = 120


def run(host: Host) -> Iterator[Case]:
    if shutil.which("lz4") is None:
        raise NotHere("needs the lz4 command")
    with TemporaryDirectory(prefix="ovms-bench-load-") as disk:
        dense = make_blob(Path(disk) / "dense")
        yield _case(host, dense, "no page zero", huge=False)
        with suppress(NotHere):
            yield _case(host, dense, "no page zero, huge pages", huge=True)
        if host.quick:
            return
        dense.path.unlink()
        yield _case(host, make_blob(Path(disk) / "scattered", scattered=True), "every 4th page zero", huge=False)


def _case(host: Host, blob: BlobOfRam, what: str, *, huge: bool) -> Case:
    with image_place(huge=huge) as place, asyncio.Runner() as runner:
        images = ResidentImages(place / "images", mlock="required")
        runner.run(images.open())
        try:
            taken = alternate(
                {
                    "ours": lambda: runner.run(_ours(images, blob)),
                    "lz4": lambda: _by_hand(blob, place / "ram"),
                },
                host.rounds(11, 2),
            )
        finally:
            runner.run(images.close())
    return Case(
        what=f"load of 1 GiB, {what}",
        stop_line="verified, locked | lz4 has ended",
        ours=taken["ours"],
        baseline=taken["lz4"],
        baseline_is="sha256sum BLOB; lz4 -d BLOB to the same tmpfs",
        at_most=AIM,
        notes=(f"{blob.encoded.size_bytes / MIB:.0f} MiB compressed",),
        figures={"blob_bytes": blob.encoded.size_bytes, "image_bytes": blob.encoded.stored_bytes},
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
