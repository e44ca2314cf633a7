"""A RAM image from a registry on this host into locked tmpfs, its blob kept in the store, beside curl and lz4."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from cache.registry.access import Access, open_registries
from cache.registry.download import Download, Downloads
from cache.resident import ResidentImages
from cache.store import Store
from scripts.benchmarks.host import Host
from scripts.benchmarks.image_place import image_place
from scripts.benchmarks.local_registry import REPOSITORY, local_registry, upload
from scripts.benchmarks.measure import Case, alternate
from scripts.benchmarks.ram_image import BlobOfRam, make_blob
from scripts.benchmarks.row import NotHere, Row
from spec import media_types
from spec.errors import MlockLimit
from spec.oci import Descriptor
from spec.reference import parse_reference
from spec.sizes import MIB

AIM = 0.5
_BY_HAND = 'curl -fsS "$1" | tee "$2" | sha256sum && lz4 -d -q -f "$2" "$3"'


def run(host: Host) -> Iterator[Case]:
    if missing := [each for each in ("curl", "lz4") if shutil.which(each) is None]:
        raise NotHere(f"needs {' and '.join(missing)}")
    with TemporaryDirectory(prefix="ovms-bench-pull-") as disk, local_registry(Path(disk)) as address:
        blob = make_blob(Path(disk) / "image")
        url = upload(address, blob.path, blob.encoded.digest)
        yield _case(host, Path(disk), address, url, blob, huge=False)
        if host.quick:
            return
        with suppress(NotHere):
            yield _case(host, Path(disk), address, url, blob, huge=True)


def _case(host: Host, disk: Path, address: str, url: str, blob: BlobOfRam, *, huge: bool) -> Case:
    store = Store(disk / "store")
    store.create()
    with image_place(huge=huge) as place, asyncio.Runner() as runner:
        images = ResidentImages(place / "images", mlock="required")
        runner.run(images.open())
        try:
            taken = alternate(
                {
                    "ours": lambda: runner.run(_ours(store, images, address, blob)),
                    "by hand": lambda: _by_hand(url, disk / "copy", place / "ram"),
                },
                host.rounds(11, 2),
            )
        finally:
            runner.run(images.close())
            store.close()
    return Case(
        what=f"pull of 1 GiB of RAM{', huge pages' if huge else ''}",
        stop_line="blob durable in the store, image verified, locked | lz4 has ended",
        ours=taken["ours"],
        baseline=taken["by hand"],
        baseline_is="curl | tee BLOB | sha256sum; lz4 -d BLOB to the same tmpfs",
        at_most=AIM,
        notes=(f"{blob.encoded.size_bytes / MIB:.0f} MiB compressed",),
        figures={"blob_bytes": blob.encoded.size_bytes, "image_bytes": blob.encoded.stored_bytes},
    )


async def _ours(store: Store, images: ResidentImages, address: str, blob: BlobOfRam) -> float:
    digest = blob.encoded.digest
    described = Descriptor(media_types.RAMSNAP, digest, blob.encoded.size_bytes)
    began = time.perf_counter()
    async with open_registries(Access()) as registries:
        repository = registries.repository(parse_reference(f"{address}/{REPOSITORY}:1"))
        how = Downloads(sink_for=images.arrival)
        await Download(store, repository, described, how, lambda _: None).run()
    try:
        async with images.lease(digest, store.blob_path(digest), mlock_required=True, preload=True):
            took_ms = (time.perf_counter() - began) * 1000
    except MlockLimit as error:
        raise NotHere(error.detail) from error
    await images.evict(digest)
    await asyncio.to_thread(store.discard, [digest])
    return took_ms


def _by_hand(url: str, copy: Path, ram: Path) -> float:
    began = time.perf_counter()
    command = ["bash", "-o", "pipefail", "-c", _BY_HAND, "by-hand", url, str(copy), str(ram)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    took_ms = (time.perf_counter() - began) * 1000
    ram.unlink()
    copy.unlink()
    return took_ms


ROW = Row(name="pull", title="pull of a RAM image from a registry on this host", run=run)
