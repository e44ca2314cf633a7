from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from cache.resident import ResidentImages
from cache.statfs import is_tmpfs
from spec.digest import digest_of
from spec.errors import (
    BlobNotFound,
    CapacityExceeded,
    Conflict,
    DigestMismatch,
    InternalError,
    InUse,
    NoSpace,
    OvmsError,
)
from spec.ramsnap import RamsnapHeader
from spec.sizes import PAGE_BYTES
from tests.cache.ramsnap.snapshots import same_content
from tests.cache.resident.conftest import DATA_PAGES, Sample, Sampling
from tests.cache.resident.kernel import Gate

OCCUPIED_BYTES = (len(DATA_PAGES) + 1) * PAGE_BYTES


async def use(images: ResidentImages, sample: Sample) -> None:
    async with images.lease(sample.digest, sample.blob, mlock_required=False, preload=False):
        pass


def visible(image_dir: Path) -> list[str]:
    return sorted(path.name for path in image_dir.iterdir() if path.name != ".staging")


def staged(image_dir: Path) -> list[str]:
    return [path.name for path in (image_dir / ".staging").iterdir()]


async def test_a_lease_has_the_image(images: ResidentImages, image_dir: Path, sample: Sampling) -> None:
    made = sample()
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=True) as image:
        assert image.directory == image_dir / made.digest.replace(":", "-")
        assert (image.ram, image.state_dir) == (image.directory / "ram", image.directory / "state")
        assert same_content(image.ram, made.snapshot.ram)
        assert same_content(image.state_dir, made.snapshot.state)
        assert image.ram.stat().st_mode & 0o777 == 0o444
        assert image.header == made.header
        assert msgspec.json.decode((image.directory / "header.json").read_bytes(), type=RamsnapHeader) == made.header
        assert (image.degraded, image.locked_bytes) == ([], 0)
        assert images.figures().resident_bytes == OCCUPIED_BYTES
    assert images.figures().images == 1


async def test_many_leases_share_one_load(
    images: ResidentImages, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, gate = sample(), Gate(monkeypatch, opened=True)
    seen = set()

    async def clone() -> None:
        async with images.lease(made.digest, made.blob, mlock_required=False, preload=False) as image:
            seen.add(image.ram.stat().st_ino)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(50):
            tasks.create_task(clone())
    assert (gate.calls, len(seen)) == (1, 1)
    await images.evict(made.digest)


async def test_the_first_ones_cancellation_does_not_touch_the_others(
    images: ResidentImages, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, gate = sample(), Gate(monkeypatch)
    first = asyncio.create_task(use(images, made))
    await gate.entered()
    others = [asyncio.create_task(use(images, made)) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.opened.set()
    await asyncio.gather(*others)
    assert gate.calls == 1
    await images.evict(made.digest)  # so nobody's reference was lost or kept


async def test_when_the_last_one_leaves_the_load_stops(
    images: ResidentImages, image_dir: Path, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, gate = sample(), Gate(monkeypatch)
    tasks = [asyncio.create_task(use(images, made)) for _ in range(2)]
    await gate.entered()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    again = asyncio.create_task(use(images, made))  # joins neither the dying load nor its failure
    await gate.entered()
    assert visible(image_dir) == []
    gate.opened.set()
    await again
    assert gate.calls == 2
    assert visible(image_dir) == [made.digest.replace(":", "-")]


async def test_a_waiter_cancelled_as_the_load_succeeds_keeps_no_reference(
    images: ResidentImages, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, gate = sample(), Gate(monkeypatch)
    tasks = [asyncio.create_task(use(images, made)) for _ in range(2)]
    await gate.entered()
    succeed = images._shelf._loads[made.digest].succeed

    def then_cancel(entry: object) -> None:
        succeed(entry)  # type: ignore[arg-type]
        tasks[0].cancel()

    monkeypatch.setattr(images._shelf._loads[made.digest], "succeed", then_cancel)
    gate.opened.set()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [True, False]
    await images.evict(made.digest)


async def test_a_failure_reaches_all_and_the_next_attempt_loads(
    images: ResidentImages, image_dir: Path, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, gate = sample(), Gate(monkeypatch)
    content = made.blob.read_bytes()
    made.blob.write_bytes(content[:-1] + b"\xff")
    tasks = [asyncio.create_task(use(images, made)) for _ in range(5)]
    await gate.entered()
    gate.opened.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [DigestMismatch] * 5
    assert len(set(map(id, errors))) == 5
    assert len({str(error) for error in errors}) == 1
    assert visible(image_dir) == staged(image_dir) == []
    made.blob.write_bytes(content)
    await use(images, made)
    assert gate.calls == 2


async def test_an_error_that_is_none_of_ours_is_internal(
    images: ResidentImages, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cache.ramsnap.chain.decode", broken)
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        await use(images, sample())


async def test_a_blob_that_is_not_there(images: ResidentImages, tmp_path: Path) -> None:
    with pytest.raises(BlobNotFound):
        async with images.lease(digest_of(b""), tmp_path / "none", mlock_required=False, preload=False):
            pass


async def test_closing_stops_loads_and_tells_their_waiters(
    image_dir: Path, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ResidentImages(image_dir, mlock="required")
    await images.open()
    made, gate = sample(), Gate(monkeypatch)
    task = asyncio.create_task(use(images, made))
    await gate.entered()
    await images.close()
    with pytest.raises(Conflict, match="closed"):
        await task
    with pytest.raises(Conflict, match="closed"):
        await use(images, made)
    assert visible(image_dir) == staged(image_dir) == []


async def test_references_hold_an_image(images: ResidentImages, image_dir: Path, sample: Sampling) -> None:
    made = sample()
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=False):
        image = await images.retain(made.digest)
        with pytest.raises(InUse, match="2 users"):
            await images.evict(made.digest)
    with pytest.raises(InUse, match="1 users"):
        await images.evict(made.digest)
    assert image.ram.exists()
    await images.release(made.digest)
    with pytest.raises(InternalError, match="more often"):
        await images.release(made.digest)
    await images.evict(made.digest)
    assert visible(image_dir) == []
    for call in (images.evict, images.retain, images.release):
        with pytest.raises(BlobNotFound):
            await call(made.digest)


async def test_a_cancelled_eviction_is_finished(images: ResidentImages, image_dir: Path, sample: Sampling) -> None:
    made = sample()
    await use(images, made)
    task = asyncio.create_task(images.evict(made.digest))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await use(images, made)  # waits until it is gone, and loads it anew
    assert visible(image_dir) == [made.digest.replace(":", "-")]


async def test_the_least_recently_used_makes_room(image_dir: Path, sample: Sampling) -> None:
    images = ResidentImages(image_dir, mlock="required", budget_bytes=2 * OCCUPIED_BYTES + PAGE_BYTES)
    await images.open()
    one, two, three, four = map(sample, range(4))
    await use(images, one)
    await use(images, two)
    await use(images, one)
    await use(images, three)
    here = [made.digest.replace(":", "-") for made in (one, three)]
    assert visible(image_dir) == sorted(here)
    await images.retain(one.digest)
    await images.retain(three.digest)
    with pytest.raises(CapacityExceeded) as caught:
        await use(images, four)
    assert caught.value.fields["needed_bytes"] == OCCUPIED_BYTES
    assert caught.value.fields["used_bytes"] == 2 * OCCUPIED_BYTES
    assert caught.value.fields["evictable_bytes"] == 0
    assert visible(image_dir) == sorted(here)
    await images.release(three.digest)
    await use(images, four)
    assert visible(image_dir) == sorted(made.digest.replace(":", "-") for made in (one, four))
    await images.close()


async def test_what_cannot_fit_evicts_nothing(image_dir: Path, sample: Sampling) -> None:
    images = ResidentImages(image_dir, mlock="required", budget_bytes=OCCUPIED_BYTES)
    await images.open()
    small, large = sample(1), sample(2, tuple(range(400)))
    await use(images, small)
    with pytest.raises(CapacityExceeded):
        await use(images, large)
    assert images.figures().images == 1
    await images.close()


async def test_two_loads_at_once_do_not_promise_the_same_room(
    image_dir: Path, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ResidentImages(image_dir, mlock="required", budget_bytes=OCCUPIED_BYTES + PAGE_BYTES)
    await images.open()
    gate = Gate(monkeypatch)
    first = asyncio.create_task(use(images, sample(1)))
    await gate.entered()
    with pytest.raises(CapacityExceeded) as caught:
        await use(images, sample(2))
    assert caught.value.fields["promised_bytes"] == OCCUPIED_BYTES
    gate.opened.set()
    await first
    await use(images, sample(3))
    await images.close()


async def test_two_loads_at_once_do_not_count_on_the_same_free_memory(
    small_tmpfs: Path, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ResidentImages(small_tmpfs / "images", mlock="required")
    await images.open()
    gate = Gate(monkeypatch)
    first = asyncio.create_task(use(images, sample(1, tuple(range(180)))))
    await gate.entered()
    with pytest.raises(NoSpace) as caught:
        await use(images, sample(2, tuple(range(100))))
    assert caught.value.fields["promised_bytes"] == 181 * PAGE_BYTES
    gate.opened.set()
    await first
    await images.close()


async def test_a_load_that_cannot_be_published_leaves_nothing(
    images: ResidentImages, image_dir: Path, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise NoSpace("full")

    with monkeypatch.context() as patched:
        patched.setattr("cache.resident.directory.ImageDirectory.publish", full)
        with pytest.raises(NoSpace):
            await use(images, sample())
    assert visible(image_dir) == staged(image_dir) == []


async def test_a_full_tmpfs_is_found_before_loading(small_tmpfs: Path, sample: Sampling) -> None:
    images = ResidentImages(small_tmpfs / "images", mlock="required")
    await images.open()
    one, two, large = sample(1), sample(2, tuple(range(180))), sample(3, tuple(range(300)))
    await use(images, one)
    await use(images, two)  # makes the first one leave, as there is no room for both
    assert visible(small_tmpfs / "images") == [two.digest.replace(":", "-")]
    with pytest.raises(NoSpace) as caught:
        await use(images, large)
    assert caught.value.fields["needed_bytes"] == 301 * PAGE_BYTES
    with pytest.raises(NoSpace):  # the first one is in use now
        async with images.lease(two.digest, two.blob, mlock_required=False, preload=False):
            await use(images, one)
    await images.close()


async def test_a_tmpfs_that_fills_while_loading_is_left_clean(
    small_tmpfs: Path, sample: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ResidentImages(small_tmpfs / "images", mlock="required")
    await images.open()
    made, gate = sample(1, tuple(range(180))), Gate(monkeypatch)
    task = asyncio.create_task(use(images, made))
    await gate.entered()
    (small_tmpfs / "other").write_bytes(bytes(100 * PAGE_BYTES))
    gate.opened.set()
    with pytest.raises(NoSpace):
        await task
    assert visible(small_tmpfs / "images") == staged(small_tmpfs / "images") == []
    (small_tmpfs / "other").unlink()
    await use(images, made)
    await images.close()


async def test_a_directory_that_is_no_tmpfs_is_a_degradation(tmp_path: Path, sample: Sampling) -> None:
    if is_tmpfs(tmp_path):
        pytest.skip("temporary files are on a tmpfs here")
    images = ResidentImages(tmp_path / "images", mlock="best-effort")
    await images.open()
    made = sample()
    async with images.lease(made.digest, made.blob, mlock_required=False, preload=False) as image:
        assert [entry.code for entry in image.degraded] == ["image_dir.not_tmpfs"]
    await images.close()


async def test_a_directory_that_cannot_be_made(tmpfs_dir: Path) -> None:
    (tmpfs_dir / "file").write_text("")
    images = ResidentImages(tmpfs_dir / "file" / "images", mlock="required")
    with pytest.raises(OvmsError):
        await images.open()
