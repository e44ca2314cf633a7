"""Snapshots that become images where they lie."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from cache.resident import ResidentImages
from spec.errors import CorruptRamsnap, InvalidInput, NoSpace
from tests.cache.ramsnap.snapshots import same_content
from tests.cache.resident.conftest import Sample, Sampling
from tests.cache.resident.kernel import Gate


async def staged(images: ResidentImages, made: Sample) -> Path:
    """A staging with a copy of the sample in it."""
    staging = await images.stage()
    for file in (Path("ram"), Path("state/device")):
        source = (made.snapshot.ram.parent / file).read_bytes()
        (staging / file).write_bytes(source)
    return staging


async def test_a_staging_becomes_the_image(images: ResidentImages, image_dir: Path, sample: Sampling) -> None:
    made = sample()
    staging = await staged(images, made)
    inode = (staging / "ram").stat().st_ino
    image = await images.adopt(staging, made.encoded, made.header)
    assert image.directory == image_dir / made.digest.replace(":", "-")
    assert image.ram.stat().st_ino == inode
    assert same_content(image.ram, made.snapshot.ram)
    assert [file.stat().st_mode & 0o777 for file in (image.ram, image.state_dir / "device")] == [0o444, 0o444]
    assert not staging.exists()
    made.blob.unlink()  # nobody needs it
    async with images.lease(made.digest, made.blob, mlock_required=True, preload=True) as leased:
        assert leased.locked_bytes
    await images.release(made.digest)
    await images.evict(made.digest)


async def test_a_staging_of_an_image_that_is_here_is_dropped(images: ResidentImages, sample: Sampling) -> None:
    made = sample()
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=False) as here:
        inode = here.ram.stat().st_ino
        staging = await staged(images, made)
        image = await images.adopt(staging, made.encoded, made.header)
        assert image.ram.stat().st_ino == inode
        assert not staging.exists()
    await images.release(made.digest)
    await images.evict(made.digest)


async def test_a_staging_of_an_image_that_is_being_loaded_is_dropped(
    images: ResidentImages, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, gate = sample(), Gate(monkeypatch)

    async def use() -> None:
        async with images.lease(made.digest, made.blob, mlock_required=False, preload=False):
            pass

    loading = asyncio.create_task(use())
    await gate.entered()
    staging = await staged(images, made)
    adopting = asyncio.create_task(images.adopt(staging, made.encoded, made.header))
    await asyncio.sleep(0)
    gate.opened.set()
    await loading
    assert (await adopting).ram.exists()
    assert not staging.exists()
    await images.release(made.digest)
    await images.evict(made.digest)


async def test_both_of_two_adoptions_have_the_image(images: ResidentImages, sample: Sampling) -> None:
    made = sample()
    stagings = [await staged(images, made) for _ in range(2)]
    adopted = await asyncio.gather(*(images.adopt(staging, made.encoded, made.header) for staging in stagings))
    assert adopted[0].ram == adopted[1].ram
    assert not any(staging.exists() for staging in stagings)
    for _ in adopted:
        await images.release(made.digest)
    await images.evict(made.digest)


async def test_a_cancelled_adoption_keeps_no_reference(images: ResidentImages, sample: Sampling) -> None:
    made = sample()
    staging = await staged(images, made)
    task = asyncio.create_task(images.adopt(staging, made.encoded, made.header))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await images.discard(staging)  # what the caller's undo does
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=False) as image:
        assert same_content(image.ram, made.snapshot.ram)
    await images.evict(made.digest)


@pytest.mark.parametrize("fault", ["no ram", "short ram", "no state", "short state", "more state", "link"])
async def test_a_staging_that_is_not_the_snapshot_stays_the_callers(
    fault: str, images: ResidentImages, image_dir: Path, sample: Sampling
) -> None:
    made = sample()
    staging = await staged(images, made)
    ram, device = staging / "ram", staging / "state" / "device"
    match fault:
        case "no ram":
            ram.unlink()
        case "short ram":
            os.truncate(ram, 4096)
        case "no state":
            device.unlink()
        case "short state":
            os.truncate(device, 1)
        case "more state":
            (staging / "state" / "more").touch()
        case _:
            device.rename(staging / "other")
            device.symlink_to("../other")
    with pytest.raises(Exception, match=r"snapshot's header|ram") as caught:
        await images.adopt(staging, made.encoded, made.header)
    assert caught.type.__module__ == "spec.errors"
    if fault != "no ram":
        assert caught.type is CorruptRamsnap
    assert staging.exists()
    await images.discard(staging)
    await images.discard(staging)
    assert [path.name for path in image_dir.iterdir()] == [".staging"]


async def test_an_adopted_image_counts_in_the_budget(image_dir: Path, sample: Sampling) -> None:
    images = ResidentImages(image_dir, mlock="required", budget_bytes=50 * 4096)
    await images.open()
    made, other = sample(1), sample(2, (1, 2, 3))
    await images.adopt(await staged(images, made), made.encoded, made.header)  # more than the budget, but it is there
    with pytest.raises(Exception, match="budget"):
        async with images.lease(other.digest, other.blob, mlock_required=False, preload=False):
            pass
    await images.release(made.digest)
    async with images.lease(other.digest, other.blob, mlock_required=False, preload=False):
        assert images.figures().images == 1
    await images.close()


async def test_only_stagings_are_adopted_and_discarded(
    images: ResidentImages, tmp_path: Path, sample: Sampling
) -> None:
    made = sample()
    for path in (tmp_path, made.snapshot.ram.parent):
        with pytest.raises(InvalidInput):
            await images.discard(path)
        with pytest.raises(InvalidInput):
            await images.adopt(path, made.encoded, made.header)
    assert made.snapshot.ram.exists()


async def test_a_full_tmpfs_while_publishing(small_tmpfs: Path, sample: Sampling) -> None:
    images = ResidentImages(small_tmpfs / "images", mlock="required")
    await images.open()
    made = sample(1, (1, 2), 20)
    staging = await staged(images, made)
    with (small_tmpfs / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
    with pytest.raises(NoSpace):
        await images.adopt(staging, made.encoded, made.header)
    await images.discard(staging)
    assert [path.name for path in (small_tmpfs / "images").iterdir()] == [".staging"]
    await images.close()
