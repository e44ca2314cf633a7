"""A lease of a layered snapshot: one image of all its layers, made from what is here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cache.ramsnap import Changes, EncodedRamsnap
from cache.resident import ResidentImages
from spec.digest import Digest
from spec.errors import BlobNotFound, CapacityExceeded
from spec.sizes import PAGE_BYTES
from tests.cache.ramsnap.snapshots import Snapshot, page_of, same_content

PAGES, DATA = 600, range(100, 200)
Layers = tuple[list[Snapshot], list[EncodedRamsnap]]


@pytest.fixture
def blob_path(tmp_path: Path) -> Callable[[Digest], Path]:
    return lambda digest: tmp_path / digest.replace(":", "-")


@pytest.fixture
def layers(tmp_path: Path, blob_path: Callable[[Digest], Path]) -> Layers:
    """A snapshot of 100 pages of data and two layers, each of one page more."""
    snapshots: list[Snapshot] = []
    made: list[EncodedRamsnap] = []
    for number in range(3):
        pages = {page: page_of(page) for page in (*DATA, *range(300, 300 + number))}
        snapshot = Snapshot.write(tmp_path / f"layer-{number}", pages, PAGES * PAGE_BYTES, {"device": page_of(number)})
        changes = None
        if number:
            changes = Changes(parent=made[-1].digest, extents=[((299 + number) * PAGE_BYTES, PAGE_BYTES)])
        made.append(snapshot.encode(tmp_path / "part", threads=1, changes=changes))
        (tmp_path / "part").rename(blob_path(made[-1].digest))
        snapshots.append(snapshot)
    return snapshots, made


@pytest.fixture
async def layered(image_dir: Path, blob_path: Callable[[Digest], Path]) -> AsyncIterator[ResidentImages]:
    images = ResidentImages(image_dir, mlock="required", budget_bytes=150 * PAGE_BYTES, blob_path=blob_path)
    await images.open()
    yield images
    await images.close()


async def test_all_layers_make_one_image(
    layered: ResidentImages, layers: Layers, blob_path: Callable[[Digest], Path]
) -> None:
    snapshots, (_, _, top) = layers
    async with layered.lease(top.digest, blob_path(top.digest), mlock_required=False, preload=True) as image:
        assert await asyncio.to_thread(same_content, image.ram, snapshots[2].ram)
        assert await asyncio.to_thread(same_content, image.state_dir, snapshots[2].state)
        assert layered.figures().images == 1
        assert layered.figures().resident_bytes == (len(DATA) + 2 + 1) * PAGE_BYTES


@pytest.mark.parametrize("budget_pages", [150, 250])
async def test_a_parent_that_is_here_is_used_or_makes_room(
    image_dir: Path, layers: Layers, blob_path: Callable[[Digest], Path], budget_pages: int
) -> None:
    snapshots, (bottom, _, top) = layers
    images = ResidentImages(image_dir, mlock="required", budget_bytes=budget_pages * PAGE_BYTES, blob_path=blob_path)
    await images.open()
    async with images.lease(bottom.digest, blob_path(bottom.digest), mlock_required=False, preload=False):
        pass
    async with images.lease(top.digest, blob_path(top.digest), mlock_required=False, preload=False) as image:
        assert await asyncio.to_thread(same_content, image.ram, snapshots[2].ram)
        assert images.figures().images == (2 if budget_pages == 250 else 1)
    for digest in (top.digest, *([bottom.digest] if budget_pages == 250 else [])):
        await images.evict(digest)  # nobody holds on to them
    await images.close()


async def test_an_image_that_nobody_waits_for_evicts_none(
    layered: ResidentImages, layers: Layers, blob_path: Callable[[Digest], Path]
) -> None:
    _, (bottom, _, top) = layers
    layered.prefetch(bottom.digest, blob_path(bottom.digest))
    layered.prefetch(bottom.digest, blob_path(bottom.digest))  # on its way already
    await settled(layered)
    assert layered.figures().images == 1
    layered.prefetch(top.digest, blob_path(top.digest))
    layered.prefetch(top.digest, blob_path(top.digest).with_name("none"))
    await settled(layered)
    assert list(layered._shelf.entries) == [bottom.digest]
    async with layered.lease(top.digest, blob_path(top.digest), mlock_required=False, preload=False):
        assert list(layered._shelf.entries) == [top.digest]  # who waits for it is worth more than what nobody uses


async def settled(images: ResidentImages) -> None:
    while loads := list(images._shelf._loads.values()):
        await loads[0].ended()


async def test_a_parent_in_use_does_not_make_room(
    layered: ResidentImages, layers: Layers, blob_path: Callable[[Digest], Path]
) -> None:
    _, (bottom, _, top) = layers
    async with layered.lease(bottom.digest, blob_path(bottom.digest), mlock_required=False, preload=False):
        with pytest.raises(CapacityExceeded):
            async with layered.lease(top.digest, blob_path(top.digest), mlock_required=False, preload=False):
                pass
    assert not list((image_dir_of(layered) / ".staging").iterdir())


async def test_a_missing_parent_is_told_before_room_is_made(
    layered: ResidentImages, layers: Layers, blob_path: Callable[[Digest], Path]
) -> None:
    _, (bottom, middle, top) = layers
    async with layered.lease(bottom.digest, blob_path(bottom.digest), mlock_required=False, preload=False):
        pass
    await asyncio.to_thread(blob_path(middle.digest).unlink)
    with pytest.raises(BlobNotFound, match=middle.digest):
        async with layered.lease(top.digest, blob_path(top.digest), mlock_required=False, preload=False):
            pass
    assert layered.figures().images == 1


def image_dir_of(images: ResidentImages) -> Path:
    return images._directory.path
