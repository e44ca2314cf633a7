"""Preloaded and locked pages, by the kernel's figures."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from cache.mlock import ImageMapping
from cache.resident import ResidentImages
from spec.errors import MlockLimit, Unsupported
from spec.sizes import PAGE_BYTES
from tests.cache.resident.conftest import DATA_PAGES, IMAGE_PAGES, Sampling
from tests.cache.resident.kernel import locked_kib, mapping_kib

ROOT = Path(__file__).parents[3]
DATA_KIB = len(DATA_PAGES) * PAGE_BYTES // 1024
IMAGE_KIB = IMAGE_PAGES * PAGE_BYTES // 1024


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512 // 1024


async def test_required_pages_are_locked_and_holes_stay_holes(images: ResidentImages, sample: Sampling) -> None:
    made, before = sample(), locked_kib()
    async with images.lease(made.digest, made.blob, mlock_required=True, preload=False) as image:
        assert image.locked_bytes == DATA_KIB * 1024
        assert mapping_kib(image.ram, "Locked:") == mapping_kib(image.ram, "Rss:") == DATA_KIB
        assert locked_kib() - before == IMAGE_KIB
        assert allocated(image.ram) == DATA_KIB
        assert image.degraded == []
    assert images.figures().locked_bytes == DATA_KIB * 1024  # kept for the next start
    await images.evict(made.digest)
    assert locked_kib() == before
    assert images.figures().locked_bytes == 0


async def test_preloaded_pages_are_mapped_but_not_locked(images: ResidentImages, sample: Sampling) -> None:
    made, before = sample(), locked_kib()
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=True) as image:
        assert mapping_kib(image.ram, "Rss:") == DATA_KIB
        assert (image.locked_bytes, locked_kib(), allocated(image.ram)) == (0, before, DATA_KIB)


async def test_without_either_nothing_is_mapped(images: ResidentImages, sample: Sampling) -> None:
    made = sample()
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=False) as image:
        assert mapping_kib(image.ram, "Size:") == 0


@pytest.mark.parametrize("preload", [False, True])
async def test_a_later_lease_upgrades_the_image(images: ResidentImages, sample: Sampling, preload: bool) -> None:
    made, before = sample(), locked_kib()
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=preload) as first:
        assert first.locked_bytes == 0
        locked = await asyncio.gather(*(images.retain(made.digest, mlock_required=True) for _ in range(5)))
        assert {image.locked_bytes for image in locked} == {DATA_KIB * 1024}
        assert locked_kib() - before == IMAGE_KIB  # once, whatever the number of users
        assert mapping_kib(first.ram, "Size:") == IMAGE_KIB
    for _ in locked:
        await images.release(made.digest)
    await images.evict(made.digest)


async def test_an_image_of_zeros_is_locked_too(images: ResidentImages, sample: Sampling) -> None:
    made, before = sample(0, ()), locked_kib()
    async with images.lease(made.digest, made.blob, mlock_required=True, preload=True) as image:
        assert (image.locked_bytes, allocated(image.ram), locked_kib() - before) == (0, 0, IMAGE_KIB)


async def test_the_count_of_locked_pages_does_not_shrink_with_clones(images: ResidentImages, sample: Sampling) -> None:
    made = sample()
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=False) as image:
        with ImageMapping(image.ram) as clone:  # maps the same pages, as the process of a VMM does
            await asyncio.to_thread(clone.populate)
            assert (await images.retain(made.digest, mlock_required=True)).locked_bytes == DATA_KIB * 1024
    await images.release(made.digest)


async def test_a_refused_lock_leaves_nothing(
    images: ResidentImages, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, before = sample(), locked_kib()

    def old_kernel(*_: object) -> int:
        raise Unsupported("old kernel")

    monkeypatch.setattr(ImageMapping, "populate", old_kernel)
    with pytest.raises(MlockLimit, match="old kernel"):
        async with images.lease(made.digest, made.blob, mlock_required=True, preload=True):
            pass
    assert locked_kib() == before
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=True) as image:
        assert [(entry.code, entry.detail) for entry in image.degraded] == [("preload.unavailable", "old kernel")]
        assert mapping_kib(image.ram, "Size:") == 0
    await images.evict(made.digest)


async def test_a_failed_upgrade_keeps_what_was_there(
    images: ResidentImages, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, before = sample(), locked_kib()
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=True) as image:
        monkeypatch.setattr(ImageMapping, "populate", lambda *_: 1 << 40)  # more than the kernel will say is locked
        with pytest.raises(MlockLimit, match="the kernel counts"):
            await images.retain(made.digest, mlock_required=True)
        assert (locked_kib(), mapping_kib(image.ram, "Rss:")) == (before, DATA_KIB)
    await images.evict(made.digest)


async def test_cancelled_locking_stops_and_gives_the_reference_back(
    images: ResidentImages, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, before = sample(), locked_kib()
    entered, populate = threading.Event(), ImageMapping.populate

    def slowly(mapping: ImageMapping, stop: threading.Event) -> int:
        entered.set()
        assert stop.wait(10)
        return populate(mapping, stop)

    monkeypatch.setattr(ImageMapping, "populate", slowly)

    async def use() -> None:
        async with images.lease(made.digest, made.blob, mlock_required=True, preload=True):
            pass

    task = asyncio.create_task(use())
    await asyncio.to_thread(entered.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert locked_kib() == before
    await images.evict(made.digest)


async def test_nothing_is_locked_after_closing(image_dir: Path, sample: Sampling) -> None:
    before, made = locked_kib(), sample()
    images = ResidentImages(image_dir, mlock="required")
    await images.open()
    async with images.lease(made.digest, made.blob, mlock_required=True, preload=True):
        await images.close()
        assert locked_kib() == before


def test_populating_stops(sample: Sampling) -> None:
    stop = threading.Event()
    stop.set()
    with ImageMapping(sample().snapshot.ram) as mapping, pytest.raises(CancelledError):
        mapping.populate(stop)


LIMITED = """
import asyncio, sys
from pathlib import Path
from cache.resident import ResidentImages
from spec.digest import parse_digest
from spec.errors import MlockLimit

async def main(policy, image_dir, blob, digest):
    images = ResidentImages(Path(image_dir), mlock=policy)
    await images.open()
    try:
        async with images.lease(parse_digest(digest), Path(blob), mlock_required=True, preload=True) as image:
            print(image.locked_bytes, *(entry.code for entry in image.degraded), images.figures().images)
    except MlockLimit as error:
        print(error.code, error.fields["needed_bytes"], error.fields["limit_bytes"])
        await images.evict(parse_digest(digest))  # nobody's reference is left
    await images.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(not shutil.which("setpriv") or not shutil.which("prlimit"), reason="needs util-linux")
@pytest.mark.parametrize(
    ("policy", "limit_bytes", "expected"),
    [
        ("required", 65536, f"host.mlock_limit {IMAGE_KIB * 1024} 65536"),
        ("required", 0, f"host.mlock_limit {IMAGE_KIB * 1024} 0"),
        ("best-effort", 65536, "0 mlock.unavailable 1"),
        ("best-effort", 4 << 20, f"{DATA_KIB * 1024} 1"),
    ],
)
def test_the_limit_of_locked_memory(
    policy: str, limit_bytes: int, expected: str, image_dir: Path, sample: Sampling
) -> None:
    """In a process that may not lock without limit. The soft limit is 0: it must be raised to the hard one."""
    made = sample()
    without = ["setpriv", "--inh-caps=-ipc_lock", "--bounding-set=-ipc_lock"] if os.geteuid() == 0 else []
    limited = ["prlimit", f"--memlock=0:{limit_bytes}", *without, sys.executable, "-c", LIMITED]
    done = subprocess.run(
        [*limited, policy, image_dir, made.blob, made.digest], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr
