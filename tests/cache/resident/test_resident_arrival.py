"""An image made while its blob is downloaded: there as soon as the digest holds, and not a moment earlier."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cache.ramsnap import read_header
from cache.registry.client import Repository
from cache.registry.credentials import Credentials
from cache.registry.download import Download, Downloads, Fetched
from cache.registry.retry import RetryPolicy
from cache.registry.session import Session
from cache.registry.tokens import Tokens
from cache.registry.transport import Transport
from cache.resident import ResidentImages
from cache.resident.arrival import Arrival
from cache.store import Store
from spec import media_types
from spec.digest import digest_of
from spec.errors import CapacityExceeded, CorruptRamsnap, DigestMismatch, NoSpace, Unsupported
from spec.oci import Descriptor
from spec.ramsnap import PAGES_PER_FRAME
from spec.reference import parse_reference
from spec.sizes import PAGE_BYTES
from tests.cache.ramsnap.snapshots import Blob, Snapshot, same_content
from tests.cache.registry.small_registry import SmallRegistry, serving
from tests.cache.resident.conftest import Sample, Sampling

PATIENT = RetryPolicy(first_s=0.01, longest_s=0.02)


def noise(number: int) -> bytes:
    """A page that does not compress."""
    return hashlib.shake_256(f"page {number}".encode()).digest(4096)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    store.create()
    yield store
    store.close()


@pytest.fixture
async def registry() -> AsyncIterator[SmallRegistry]:
    async with serving(SmallRegistry()) as registry:
        yield registry


@pytest.fixture
async def repository(registry: SmallRegistry, tmp_path: Path) -> AsyncIterator[Repository]:
    async with Transport(retry=PATIENT) as transport:
        session = Session(transport, Tokens(transport, Credentials([tmp_path / "auth.json"])))
        yield Repository(session, parse_reference(f"{registry.host}/team/app:1"))


class Line:
    """A registry with one blob, and a store to download it to."""

    def __init__(self, store: Store, repository: Repository, registry: SmallRegistry) -> None:
        self.store, self.repository, self.registry = store, repository, registry

    def offer(self, sample: Sample) -> Descriptor:
        digest = self.registry.add_blob(sample.blob.read_bytes())
        return Descriptor(media_types.RAMSNAP, digest, sample.encoded.size_bytes)

    async def fetch(self, blob: Descriptor, arrival: Arrival) -> Fetched:
        how = Downloads(retry=PATIENT, sink_for=lambda _: arrival)
        return await Download(self.store, self.repository, blob, how, lambda _: None).run()


@pytest.fixture
def line(store: Store, repository: Repository, registry: SmallRegistry) -> Line:
    return Line(store, repository, registry)


@pytest.fixture
def large(tmp_path: Path) -> Sample:
    """Two frames of RAM, 5 MiB that do not compress, so that they arrive in several pieces."""
    pages = [*range(0, PAGES_PER_FRAME, 3), *range(PAGES_PER_FRAME, 2 * PAGES_PER_FRAME)]
    snapshot = Snapshot.write(
        tmp_path / "large", {page: noise(page) for page in pages}, 2 * PAGES_PER_FRAME * PAGE_BYTES, {"device": b"x"}
    )
    encoded = snapshot.encode(tmp_path / "large-blob", threads=1)
    return Sample(
        snapshot=snapshot,
        encoded=encoded,
        blob=tmp_path / "large-blob",
        header=read_header(tmp_path / "large-blob"),
    )


def staged(image_dir: Path) -> list[Path]:
    return list((image_dir / ".staging").iterdir())


def visible(image_dir: Path) -> list[str]:
    return [path.name for path in image_dir.iterdir() if path.name.startswith("sha256-")]


async def test_what_arrived_is_resident_and_in_the_store(
    images: ResidentImages, image_dir: Path, line: Line, large: Sample
) -> None:
    blob = line.offer(large)
    arrival = images.arrival(blob)
    await line.fetch(blob, arrival)
    assert arrival.error is None
    assert line.store.blob_path(large.digest).read_bytes() == large.blob.read_bytes()
    line.store.blob_path(large.digest).unlink()  # the image needs it no more
    image = await images.retain(large.digest, mlock_required=True)
    assert same_content(image.ram, large.snapshot.ram)
    assert same_content(image.state_dir, large.snapshot.state)
    assert image.locked_bytes >= large.encoded.stored_bytes
    assert (image.header, staged(image_dir)) == (large.header, [])
    await images.release(large.digest)


async def test_a_broken_connection_loses_no_frame(images: ResidentImages, line: Line, large: Sample) -> None:
    blob = line.offer(large)
    line.registry.cuts.extend([3_000_000, 500_000, 1_000_000])
    arrival = images.arrival(blob)
    fed = 0
    feed = arrival.feed

    def counted(piece: bytes) -> None:
        nonlocal fed
        fed += len(piece)
        feed(piece)

    arrival.feed = counted  # type: ignore[method-assign]
    fetched = await line.fetch(blob, arrival)
    assert (arrival.error, fed, fetched.network_bytes) == (None, blob.size, blob.size)
    image = await images.retain(large.digest)
    assert same_content(image.ram, large.snapshot.ram)
    await images.release(large.digest)


async def test_a_registry_that_starts_over_is_followed(images: ResidentImages, line: Line, large: Sample) -> None:
    blob = line.offer(large)
    line.registry.cuts.append(4_000_000)
    line.registry.ranges = False
    arrival = images.arrival(blob)
    await line.fetch(blob, arrival)
    assert arrival.error is None
    image = await images.retain(large.digest)
    assert same_content(image.ram, large.snapshot.ram)
    await images.release(large.digest)


async def test_a_wrong_digest_leaves_nothing(
    images: ResidentImages, image_dir: Path, line: Line, large: Sample
) -> None:
    blob = line.offer(large)
    content = bytearray(line.registry.blobs[blob.digest])
    content[-5] ^= 1
    line.registry.blobs[blob.digest] = bytes(content)
    arrival = images.arrival(blob)
    with pytest.raises(DigestMismatch):
        await line.fetch(blob, arrival)
    assert (visible(image_dir), staged(image_dir), line.store.has_blob(large.digest)) == ([], [], False)


async def test_nothing_is_visible_before_the_last_byte(
    images: ResidentImages, image_dir: Path, line: Line, large: Sample
) -> None:
    blob = line.offer(large)
    line.registry.cut_after = 4_000_000
    line.registry.ranges = False
    arrival = images.arrival(blob)
    task = asyncio.create_task(line.fetch(blob, arrival))
    async with asyncio.timeout(30):
        while not staged(image_dir):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    assert visible(image_dir) == []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (visible(image_dir), staged(image_dir)) == ([], [])


async def test_a_frame_that_is_not_the_recorded_one_fails_the_image_and_not_the_download(
    images: ResidentImages, image_dir: Path, line: Line, large: Sample
) -> None:
    parts = Blob.read(large.blob)
    parts.records[-1] = replace(parts.records[-1], digest=bytes(32))
    digest = parts.assemble(large.blob)
    blob = Descriptor(media_types.RAMSNAP, digest, large.blob.stat().st_size)
    line.registry.add_blob(large.blob.read_bytes())
    arrival = images.arrival(blob)
    await line.fetch(blob, arrival)
    assert isinstance(arrival.error, DigestMismatch)
    assert line.store.has_blob(digest)
    assert (visible(image_dir), staged(image_dir)) == ([], [])


async def test_what_is_no_ramsnap_fails_the_image_and_not_the_download(images: ResidentImages, line: Line) -> None:
    data = b"not a snapshot" * 100_000
    blob = Descriptor(media_types.RAMSNAP, line.registry.add_blob(data), len(data))
    arrival = images.arrival(blob)
    await line.fetch(blob, arrival)
    assert isinstance(arrival.error, CorruptRamsnap)
    assert line.store.has_blob(digest_of(data))


async def test_a_layer_is_left_to_the_load(images: ResidentImages, image_dir: Path, line: Line) -> None:
    data = (Path(__file__).parents[3] / "spec" / "vectors" / "layer.ramsnap").read_bytes()
    blob = Descriptor(media_types.RAMSNAP, line.registry.add_blob(data), len(data))
    arrival = images.arrival(blob)
    await line.fetch(blob, arrival)
    assert isinstance(arrival.error, Unsupported)
    assert staged(image_dir) == []


async def test_an_image_beyond_the_budget_is_not_begun(image_dir: Path, line: Line, large: Sample) -> None:
    images = ResidentImages(image_dir, mlock="best-effort", budget_bytes=1 << 20)
    await images.open()
    arrival = images.arrival(line.offer(large))
    await line.fetch(line.offer(large), arrival)
    assert isinstance(arrival.error, CapacityExceeded)
    assert (visible(image_dir), staged(image_dir)) == ([], [])
    await images.close()


async def test_an_unused_image_gives_way_to_one_that_arrives(
    image_dir: Path, line: Line, large: Sample, sample: Sampling
) -> None:
    old = sample()
    images = ResidentImages(image_dir, mlock="best-effort", budget_bytes=large.encoded.stored_bytes + PAGE_BYTES)
    await images.open()
    async with images.lease(old.digest, old.blob, mlock_required=False, preload=False):
        pass
    arrival = images.arrival(line.offer(large))
    await line.fetch(line.offer(large), arrival)
    assert arrival.error is None
    assert visible(image_dir) == [large.digest.replace(":", "-")]
    await images.close()


async def test_a_full_tmpfs_fails_the_image_and_not_the_download(line: Line, large: Sample, small_tmpfs: Path) -> None:
    images = ResidentImages(small_tmpfs / "images", mlock="best-effort")
    await images.open()
    arrival = images.arrival(line.offer(large))
    await line.fetch(line.offer(large), arrival)
    assert isinstance(arrival.error, NoSpace)
    assert line.store.has_blob(large.digest)
    assert staged(small_tmpfs / "images") == []
    await images.close()


async def test_an_image_that_is_here_is_not_replaced(
    images: ResidentImages, image_dir: Path, line: Line, large: Sample
) -> None:
    async with images.lease(large.digest, large.blob, mlock_required=False, preload=False) as image:
        inode = image.ram.stat().st_ino
        arrival = images.arrival(line.offer(large))
        await line.fetch(line.offer(large), arrival)
        assert (arrival.error, image.ram.stat().st_ino, staged(image_dir)) == (None, inode, [])
