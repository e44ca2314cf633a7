"""What the next daemon finds: images that were complete, and what a crash left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.resident import ResidentImages
from spec.errors import BlobNotFound
from tests.cache.ramsnap.snapshots import same_content
from tests.cache.resident.conftest import Sample, Sampling
from tests.cache.resident.kernel import Gate


async def loaded(image_dir: Path, made: Sample) -> Path:
    """The directory of an image that an earlier daemon loaded."""
    images = ResidentImages(image_dir, mlock="required")
    await images.open()
    async with images.lease(made.digest, made.blob, mlock_required=True, preload=True) as image:
        directory = image.directory
    await images.close()
    return directory


async def test_a_complete_image_is_taken_over(
    image_dir: Path, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sample()
    directory = await loaded(image_dir, made)
    os.link(directory / "ram", image_dir / "clone")  # an instance's own name of the file comes and goes
    (image_dir / "clone").unlink()
    gate = Gate(monkeypatch, opened=True)
    images = ResidentImages(image_dir, mlock="required")
    await images.open()
    assert images.figures().images == 1
    image = await images.retain(made.digest, mlock_required=True)
    assert image.header == made.header
    assert image.locked_bytes == images.figures().locked_bytes > 0
    await images.release(made.digest)
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=False) as leased:
        assert same_content(leased.ram, made.snapshot.ram)
    assert gate.calls == 0
    await images.close()


def _replace(directory: Path) -> None:
    content = (directory / "ram").read_bytes()
    (directory / "ram").rename(directory / "state" / "old")
    (directory / "ram").write_bytes(content)
    (directory / "state" / "old").unlink()


def _write(directory: Path) -> None:
    (directory / "ram").chmod(0o644)
    with (directory / "ram").open("r+b") as ram:
        ram.write(b"x")


def _boot(directory: Path) -> None:
    record = directory / "verified.json"
    record.write_bytes(record.read_bytes().replace(b'"boot_id":"', b'"boot_id":"0'))


FAULTS: dict[str, Callable[[Path], object]] = {
    "written": _write,
    "truncated": lambda directory: os.truncate(directory / "ram", 4096),
    "touched": lambda directory: os.utime(directory / "ram"),
    "replaced": _replace,
    "no ram": lambda directory: (directory / "ram").unlink(),
    "no state file": lambda directory: (directory / "state" / "device").unlink(),
    "no state": lambda directory: shutil.rmtree(directory / "state"),
    "more state": lambda directory: (directory / "state" / "more").touch(),
    "state changed": lambda directory: os.utime(directory / "state" / "device", (0, 0)),
    "no record": lambda directory: (directory / "verified.json").unlink(),
    "empty record": lambda directory: os.truncate(directory / "verified.json", 0),
    "record of no text": lambda directory: (directory / "verified.json").write_bytes(b'{"digest":"\xff"}'),
    "header changed": lambda directory: os.utime(directory / "header.json", (0, 0)),
    "no header": lambda directory: (directory / "header.json").unlink(),
    "another boot": _boot,
    "another name": lambda directory: directory.rename(directory.parent / ("sha256-" + "0" * 64)),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_image_that_changed_is_dropped_and_loaded_again(fault: str, image_dir: Path, sample: Sampling) -> None:
    made = sample()
    FAULTS[fault](await loaded(image_dir, made))
    images = ResidentImages(image_dir, mlock="required")
    await images.open()
    assert [path.name for path in image_dir.iterdir()] == [".staging"]
    assert list((image_dir / ".staging").iterdir()) == []
    with pytest.raises(BlobNotFound):
        await images.retain(made.digest)
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=False) as image:
        assert same_content(image.ram, made.snapshot.ram)
    await images.close()


async def test_dead_stagings_are_removed_and_nothing_else(image_dir: Path, sample: Sampling) -> None:
    images = ResidentImages(image_dir, mlock="required")
    await images.open()
    staging = await images.stage()
    (staging / "ram").write_bytes(bytes(10))
    (image_dir / "instances" / "one").mkdir(parents=True)
    (image_dir / "sha256-short").mkdir()
    await images.close()
    again = ResidentImages(image_dir, mlock="required")
    await again.open()
    assert sorted(path.name for path in image_dir.iterdir()) == [".staging", "instances", "sha256-short"]
    assert list((image_dir / ".staging").iterdir()) == []
    assert (image_dir / "instances" / "one").is_dir()
    await again.close()
