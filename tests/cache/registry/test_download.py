"""A blob is in the store when it is whole and right, whatever the registry and the network do; else it is not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from cache.registry.client import Repository
from cache.registry.download import Download, Downloads, Fetched
from cache.registry.progress import BlobProgress
from cache.registry.session import Session
from cache.store import Store
from spec.digest import digest_of
from spec.errors import BlobNotFound, DigestMismatch, RateLimited, RegistryGarbage, RegistryUnreachable, SizeMismatch
from spec.oci import Descriptor
from spec.reference import parse_reference
from tests.cache.registry.conftest import FAST, until
from tests.cache.registry.small_registry import SmallRegistry

DATA = bytes(range(256)) * 12_000  # three pieces of a MiB
HALF = len(DATA) // 2
HOW = Downloads(retry=FAST)


class Heard:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.data = b""
        self.restarts = 0
        self.end = ""

    def feed(self, piece: bytes) -> None:
        assert not self.end
        self.data += piece

    def restart(self) -> None:
        self.data = b""
        self.restarts += 1

    def succeed(self) -> None:
        self.end += "succeeded"

    def give_up(self) -> None:
        self.end += "gave up"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    store.create()
    yield store
    store.close()


@pytest.fixture
def repository(session: Session, registry: SmallRegistry) -> Repository:
    return Repository(session, parse_reference(f"{registry.host}/team/app:1"))


def described(data: bytes = DATA, size: int | None = None) -> Descriptor:
    return Descriptor("x/y", digest_of(data), len(data) if size is None else size)


def partial_of(store: Store, data: bytes = DATA) -> Path:
    return store.partial_dir / digest_of(data).removeprefix("sha256:")


@pytest.fixture
def heard() -> Heard:
    return Heard()


async def fetch(
    store: Store, repository: Repository, heard: Heard | None = None, blob: Descriptor | None = None, **how: object
) -> Fetched:
    downloads = replace(HOW, sink_for=lambda _: heard, **how)  # type: ignore[arg-type]
    return await Download(store, repository, blob or described(), downloads, lambda _: None).run()


def is_whole(store: Store, data: bytes = DATA) -> bool:
    path = store.blob_path(digest_of(data))
    return path.exists() and path.read_bytes() == data and not partial_of(store, data).exists()


def is_clean(store: Store) -> bool:
    return not store.has_blob(digest_of(DATA)) and not any(store.partial_dir.iterdir())


@pytest.mark.parametrize("data", [DATA, b"x", b"", bytes(3 << 20), DATA + bytes(1 << 20)])
async def test_a_blob_comes_once(store: Store, repository: Repository, registry: SmallRegistry, data: bytes) -> None:
    registry.add_blob(data)
    heard = Heard()
    fetched = await fetch(store, repository, heard, described(data))
    assert fetched == Fetched(len(data), 0)
    assert is_whole(store, data)
    assert (heard.data, heard.end) == (data, "succeeded")

    requests = len(registry.requests)
    assert await fetch(store, repository, blob=described(data)) == Fetched()
    assert len(registry.requests) == requests, "a blob that is there is not asked for"


async def test_a_blob_that_was_damaged_in_the_store_is_fetched_again(
    store: Store, repository: Repository, registry: SmallRegistry
) -> None:
    registry.add_blob(DATA)
    await fetch(store, repository)
    path = store.blob_path(digest_of(DATA))
    for damaged in (DATA[::-1], DATA[:-1], b""):
        path.write_bytes(damaged)
        assert (await fetch(store, repository)).network_bytes == len(DATA)
        assert is_whole(store)


async def test_zeros_become_holes(store: Store, repository: Repository, registry: SmallRegistry) -> None:
    data = bytes(8 << 20) + b"end"
    registry.add_blob(data)
    await fetch(store, repository, blob=described(data))
    assert is_whole(store, data)
    assert store.blob_path(digest_of(data)).stat().st_blocks * 512 < 4 << 20


async def test_a_broken_connection_goes_on_where_it_broke(
    store: Store, repository: Repository, registry: SmallRegistry, heard: Heard
) -> None:
    registry.add_blob(DATA)
    registry.cuts.extend([1_500_000, 700_000, 10])
    fetched = await fetch(store, repository, heard)
    assert is_whole(store)
    assert (heard.data, heard.restarts, heard.end) == (DATA, 0, "succeeded")
    starts = [int(each.headers.get("Range", "bytes=0-")[6:-1]) for each in registry.requests]
    assert starts == sorted(starts)
    assert len(starts) == 4
    assert starts[1] > 0
    assert fetched.network_bytes == len(DATA)


async def test_a_line_that_always_breaks_is_given_up(
    store: Store, repository: Repository, registry: SmallRegistry, heard: Heard
) -> None:
    registry.add_blob(DATA)
    registry.cut_after = 10
    with pytest.raises(RegistryUnreachable):
        await fetch(store, repository, heard)
    assert len(registry.requests) == FAST.tries
    assert heard.end == "gave up"
    assert partial_of(store).read_bytes() == DATA[: 10 * FAST.tries]
    assert not store.has_blob(digest_of(DATA))


async def test_as_long_as_it_brings_something_it_is_not_given_up(
    store: Store, repository: Repository, registry: SmallRegistry
) -> None:
    registry.add_blob(DATA)
    registry.cut_after = 300_000
    await fetch(store, repository)
    assert is_whole(store)


async def test_between_two_parts_the_registry_may_ask_to_wait(
    store: Store, repository: Repository, registry: SmallRegistry
) -> None:
    registry.add_blob(DATA)
    registry.cuts.append(HALF)
    task = asyncio.create_task(fetch(store, repository))
    await until(lambda: registry.requests)
    registry.faults.append(web.Response(status=429, headers={"Retry-After": "1"}))
    await task
    assert is_whole(store)
    assert [each.headers.get("Range", "")[:6] for each in registry.requests] == ["", "bytes=", "bytes="]


async def test_a_registry_that_asks_for_too_much_patience_gets_none(
    store: Store, repository: Repository, registry: SmallRegistry
) -> None:
    registry.add_blob(DATA)
    registry.faults.append(web.Response(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(RateLimited):
        await fetch(store, repository)
    assert is_clean(store)


async def test_what_an_earlier_process_left_is_gone_on_with(
    store: Store, repository: Repository, registry: SmallRegistry, heard: Heard
) -> None:
    registry.add_blob(DATA)
    partial_of(store).write_bytes(DATA[:HALF])
    assert await fetch(store, repository, heard) == Fetched(len(DATA) - HALF, HALF)
    assert is_whole(store)
    assert (heard.data, heard.end) == (DATA, "succeeded")
    assert registry.requests[-1].headers["Range"] == f"bytes={HALF}-"


async def test_a_partial_that_is_whole_needs_no_request(
    store: Store, repository: Repository, registry: SmallRegistry
) -> None:
    partial_of(store).write_bytes(DATA)
    assert await fetch(store, repository) == Fetched(0, len(DATA))
    assert is_whole(store)
    assert not registry.requests


@pytest.mark.parametrize("left", [b"y" * HALF, DATA[::-1], DATA + b"more"], ids=["other", "all other", "longer"])
async def test_a_damaged_partial_is_thrown_away(
    store: Store, repository: Repository, registry: SmallRegistry, heard: Heard, left: bytes
) -> None:
    registry.add_blob(DATA)
    partial_of(store).write_bytes(left)
    fetched = await fetch(store, repository, heard)
    assert is_whole(store)
    assert fetched.resumed_bytes == 0
    assert (heard.data, heard.end) == (DATA, "succeeded")


@pytest.mark.parametrize("how", ["ignores", "416", "lies", "lies about the end", "no length"])
async def test_a_registry_that_cannot_go_on_starts_over(
    store: Store, repository: Repository, registry: SmallRegistry, heard: Heard, how: str
) -> None:
    registry.add_blob(DATA)
    partial_of(store).write_bytes(DATA[:HALF])
    if how == "ignores":
        registry.ranges = False
    elif how == "416":
        registry.refuses_ranges = True
    elif how == "lies":
        registry.headers = {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}
    elif how == "lies about the end":
        registry.headers = {"Content-Range": f"bytes {HALF}-{len(DATA)}/{len(DATA) + 1}"}
    else:
        registry.chunked, registry.ranges = True, False
    assert await fetch(store, repository, heard) == Fetched(len(DATA), 0)
    assert is_whole(store)
    assert (heard.data, heard.restarts, heard.end) == (DATA, 1, "succeeded")


async def test_what_is_not_its_digest_is_not_kept(
    store: Store, repository: Repository, registry: SmallRegistry, heard: Heard
) -> None:
    registry.blobs[digest_of(DATA)] = DATA[::-1]
    with pytest.raises(DigestMismatch):
        await fetch(store, repository, heard)
    assert is_clean(store)
    assert heard.end == "gave up"


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1, 1 << 50])
async def test_what_is_not_its_size_is_not_kept(
    store: Store, repository: Repository, registry: SmallRegistry, size: int, chunked: bool
) -> None:
    registry.add_blob(DATA)
    registry.chunked = chunked
    with pytest.raises(SizeMismatch):
        await fetch(store, repository, blob=described(size=size))
    assert is_clean(store)


async def test_what_is_not_there(store: Store, repository: Repository) -> None:
    with pytest.raises(BlobNotFound):
        await fetch(store, repository)
    assert is_clean(store)


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data", "http://10.0.0.1/", "file:///etc/passwd", "http://[::1]:1/"]
)
async def test_redirects_inward_are_refused(
    store: Store, repository: Repository, registry: SmallRegistry, target: str
) -> None:
    partial_of(store).write_bytes(DATA[:HALF])
    for _ in range(2):
        registry.faults.append(web.Response(status=307, headers={"Location": target}))
    with pytest.raises(RegistryGarbage):
        await fetch(store, repository)
    assert len(registry.requests) == 2
    assert partial_of(store).read_bytes() == DATA[:HALF]


async def test_two_at_once_fetch_it_once(store: Store, repository: Repository, registry: SmallRegistry) -> None:
    registry.add_blob(DATA)
    registry.chunk_wait_s = 0.002
    other = Store(store.root)
    states: list[BlobProgress] = []
    fetched = await asyncio.gather(
        fetch(store, repository, report=states.append),
        fetch(store, repository, report=states.append),
        fetch(other, repository, report=states.append),
    )
    await asyncio.to_thread(other.close)
    assert sorted(each.network_bytes for each in fetched) == [0, 0, len(DATA)]
    assert len(registry.requests) == 1
    assert is_whole(store)
    assert {"waiting", "done", "there"} <= {each.state for each in states}


async def test_whoever_waits_takes_over_from_who_gave_up(
    store: Store, repository: Repository, registry: SmallRegistry, heard: Heard
) -> None:
    registry.add_blob(DATA)
    registry.chunk_wait_s = 0.02
    first = asyncio.create_task(fetch(store, repository, heard))
    await until(lambda: heard.data)
    second = asyncio.create_task(fetch(store, repository))
    await asyncio.sleep(0.05)
    registry.chunk_wait_s = 0
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert heard.end == "gave up"
    fetched = await second
    assert fetched.resumed_bytes >= 1 << 20
    assert is_whole(store)


async def test_a_sink_that_fails_fails_the_download_and_loses_nothing(
    store: Store, repository: Repository, registry: SmallRegistry, heard: Heard
) -> None:
    registry.add_blob(DATA)
    broken = Heard()

    def feed(piece: bytes) -> None:
        raise SizeMismatch("too much for me") if piece else AssertionError

    broken.feed = feed  # type: ignore[method-assign]
    with pytest.raises(SizeMismatch):
        await fetch(store, repository, broken)
    assert broken.end == "gave up"
    await fetch(store, repository, heard)
    assert heard.end == "succeeded"


CHILD = """
import asyncio, sys
from pathlib import Path
from cache.registry.client import Repository
from cache.registry.credentials import Credentials
from cache.registry.download import Download, Downloads
from cache.registry.session import Session
from cache.registry.tokens import Tokens
from cache.registry.transport import Transport
from cache.store import Store
from spec.oci import Descriptor
from spec.reference import parse_reference

async def main(root, reference, digest, size):
    async with Transport() as transport:
        repository = Repository(Session(transport, Tokens(transport, Credentials([]))), parse_reference(reference))
        blob = Descriptor("x/y", digest, int(size))
        await Download(Store(Path(root)), repository, blob, Downloads(), print).run()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_process_leaves_what_the_next_goes_on_from(
    store: Store, repository: Repository, registry: SmallRegistry
) -> None:
    registry.add_blob(DATA)
    registry.chunk_wait_s = 0.05
    left = partial_of(store)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(store.root), f"{registry.host}/team/app:1", digest_of(DATA), str(len(DATA))
    )
    try:
        await until(lambda: left.exists() and left.stat().st_size)
    finally:
        process.kill()
        await process.wait()
    registry.chunk_wait_s = 0
    size = left.stat().st_size
    assert 0 < size < len(DATA)
    await asyncio.to_thread(store.create)  # what dead writers left is removed, but not this
    assert await fetch(store, repository) == Fetched(len(DATA) - size, size)
    assert is_whole(store)
