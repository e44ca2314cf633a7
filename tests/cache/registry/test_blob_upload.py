"""A blob arrives whole, once, and with no more bytes than it takes, whatever happens on the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from cache.registry.blob_upload import push_blob
from cache.registry.client import Repository
from cache.registry.credentials import Credentials
from cache.registry.progress import BlobProgress
from cache.registry.retry import RetryPolicy
from cache.registry.session import Session
from cache.registry.tokens import Tokens
from cache.registry.transport import Transport
from cache.registry.upload import Sizes
from spec.digest import digest_of
from spec.errors import (
    BlobNotFound,
    DigestMismatch,
    RateLimited,
    RegistryError,
    RegistryGarbage,
    RegistryRefused,
    RegistryUnreachable,
    SizeMismatch,
)
from spec.oci import Descriptor
from spec.reference import parse_reference
from tests.cache.registry.conftest import log_in
from tests.cache.registry.small_registry import PASSWORD, USER, basic, serving
from tests.cache.registry.upload_registry import UploadRegistry

DATA = random.Random(7).randbytes(300_000)
BLOB = Descriptor("x/y", digest_of(DATA), len(DATA))
CHUNKED = Sizes(single_bytes=1000, chunk_bytes=100_000)


@pytest.fixture
async def registry() -> AsyncIterator[UploadRegistry]:
    async with serving(UploadRegistry()) as registry:
        yield registry


@pytest.fixture
def repository(session: Session, registry: UploadRegistry) -> Repository:
    return Repository(session, parse_reference(f"{registry.host}/team/app:1"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    return path


def arrived(registry: UploadRegistry) -> bool:
    return BLOB.digest in registry.owned["team/app"] and registry.blobs[BLOB.digest] == DATA


@pytest.mark.parametrize("sizes", [CHUNKED, Sizes()], ids=["chunked", "single"])
async def test_a_blob_is_sent_and_seen_to_move(
    repository: Repository, registry: UploadRegistry, path: Path, sizes: Sizes
) -> None:
    seen: list[BlobProgress] = []
    assert await push_blob(repository, BLOB, path, report=seen.append, sizes=sizes) == "done"
    assert arrived(registry)
    assert registry.count("PATCH", "/uploads/") == (3 if sizes is CHUNKED else 0)
    assert registry.count("PUT", "/uploads/") == 1
    assert seen[-1] == BlobProgress(BLOB, "done", len(DATA))
    assert {each.state for each in seen[:-1]} == {"sending"}
    assert len(DATA) in {each.at_bytes for each in seen[:-1]}


async def test_small_ones_come_from_memory(repository: Repository, registry: UploadRegistry) -> None:
    assert await push_blob(repository, BLOB, DATA) == "done"
    assert arrived(registry)


async def test_what_is_there_is_not_sent(repository: Repository, registry: UploadRegistry, tmp_path: Path) -> None:
    registry.own("team/app", DATA)
    assert await push_blob(repository, BLOB, tmp_path / "gone") == "there"
    assert not registry.seen("/uploads/")


async def test_what_another_repository_has_is_mounted(repository: Repository, registry: UploadRegistry) -> None:
    registry.own("team/base", DATA)
    assert await push_blob(repository, BLOB, DATA, mount_from="team/base") == "mounted"
    assert arrived(registry)
    assert not registry.count("PUT", "/uploads/")


@pytest.mark.parametrize("mounts", [True, False])
async def test_what_cannot_be_mounted_is_sent_in_the_upload_that_was_begun(
    repository: Repository, registry: UploadRegistry, mounts: bool
) -> None:
    registry.mounts = mounts
    assert await push_blob(repository, BLOB, DATA, mount_from="team/base") == "done"
    assert arrived(registry)
    assert registry.count("POST", "/uploads/") == 1


async def test_a_registry_that_refuses_to_mount_still_gets_the_blob(
    repository: Repository, registry: UploadRegistry
) -> None:
    registry.wicked = lambda request: web.Response(status=405) if "mount" in request.query else None
    assert await push_blob(repository, BLOB, DATA, mount_from="team/base") == "done"
    assert arrived(registry)


async def test_after_broken_connections_it_goes_on_where_it_was(
    repository: Repository, registry: UploadRegistry, path: Path
) -> None:
    registry.cuts.extend([100_000, 65_000, 65_000])  # the first after all of a chunk, but before the reply
    assert await push_blob(repository, BLOB, path, sizes=CHUNKED) == "done"
    assert arrived(registry)
    assert registry.count("POST", "/uploads/") == 1
    starts = [int(each.headers["Content-Range"].split("-")[0]) for each in registry.requests if each.method == "PATCH"]
    assert starts == [0, 100_000, 165_000, 230_000]


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_on_the_way_it_arrives_whole_or_not_at_all(
    repository: Repository, registry: UploadRegistry, path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    registry.strict = chance.random() < 0.7
    registry.keeps_uploads = chance.random() < 0.7
    registry.cuts.extend(chance.choice([1, 10, 30_000, 99_999, 400_000]) for _ in range(chance.randrange(12)))
    lost = [web.Response(status=chance.choice([500, 502, 503, 429])) for _ in range(chance.randrange(4))]
    registry.after = lambda request: (  # done, but the reply is another one
        lost.pop() if lost and request.method in ("PATCH", "PUT") and chance.random() < 0.3 else None
    )
    sizes = Sizes(single_bytes=chance.choice([1000, 1 << 20]), chunk_bytes=chance.choice([7_919, 50_000, 300_000]))
    try:
        assert await push_blob(repository, BLOB, path, sizes=sizes) == "done"
    except RegistryError:
        assert BLOB.digest not in registry.owned["team/app"]
    else:
        assert arrived(registry)
    registry.cuts.clear()
    lost.clear()
    registry.keeps_uploads = True
    assert await push_blob(repository, BLOB, path, sizes=sizes) in ("done", "there")
    assert arrived(registry)


async def test_as_long_as_it_gets_on_it_may_be_interrupted(
    repository: Repository, registry: UploadRegistry, path: Path
) -> None:
    registry.cuts.extend([20_000] * 10)
    assert await push_blob(repository, BLOB, path, sizes=CHUNKED) == "done"
    assert arrived(registry)


async def test_a_registry_that_forgets_the_upload_gets_all_of_it_again(
    repository: Repository, registry: UploadRegistry, path: Path
) -> None:
    registry.keeps_uploads = False
    registry.cuts.extend([70_000, 70_000])
    assert await push_blob(repository, BLOB, path, sizes=CHUNKED) == "done"
    assert arrived(registry)
    assert registry.count("POST", "/uploads/") == 3


async def test_a_registry_that_forgets_every_upload_is_given_up_too(
    repository: Repository, registry: UploadRegistry, path: Path
) -> None:
    """Although each of them gets on for a while."""
    registry.keeps_uploads = False
    registry.cuts.extend([200_000, 50_000] * 50)  # the first chunk of each arrives
    with pytest.raises(RegistryUnreachable):
        await push_blob(repository, BLOB, path, sizes=CHUNKED)
    assert registry.count("POST", "/uploads/") == 5


async def test_a_connection_that_always_breaks_is_given_up(
    repository: Repository, registry: UploadRegistry, path: Path
) -> None:
    registry.keeps_uploads = False
    registry.cuts.extend([70_000] * 50)
    with pytest.raises(RegistryUnreachable):
        await push_blob(repository, BLOB, path, sizes=CHUNKED)
    assert registry.count("PATCH", "/uploads/") == 5
    assert not arrived(registry)


async def test_a_single_one_whose_reply_is_lost_is_not_sent_twice(
    repository: Repository, registry: UploadRegistry
) -> None:
    lost = [web.Response(status=502)]
    registry.after = lambda request: lost.pop() if request.method == "PUT" and lost else None
    assert await push_blob(repository, BLOB, DATA) == "done"
    assert arrived(registry)
    assert registry.count("PUT", "/uploads/") == 1


async def test_a_chunk_in_the_wrong_place_is_asked_about(
    repository: Repository, registry: UploadRegistry, path: Path
) -> None:
    """The reply to a chunk says less than has arrived; the next one is 416, and then it is asked."""
    shown = ["0-49999"]

    def lie(request: web.Request) -> web.Response | None:
        if request.method == "PATCH" and shown:
            location = f"{request.path}?state=x"
            return web.Response(status=202, headers={"Location": location, "Range": shown.pop()})
        return None

    registry.after = lie
    assert await push_blob(repository, BLOB, path, sizes=CHUNKED) == "done"
    assert arrived(registry)


@pytest.mark.parametrize(("told", "uploads", "ends"), [("0-9999", 2, 1), ("0-59999", 2, 2)], ids=["more", "less"])
async def test_a_registry_that_appends_what_belongs_elsewhere_gets_all_of_it_again(
    repository: Repository, registry: UploadRegistry, path: Path, told: str, uploads: int, ends: int
) -> None:
    """Such as docker-registry. It is seen in Range, or in the digest at the end."""
    registry.strict = False
    once = [told]

    def forget(request: web.Request) -> web.Response | None:
        if request.method == "GET" and "/uploads/" in request.path and once:
            return web.Response(status=204, headers={"Range": once.pop()})
        return None

    registry.wicked = forget
    registry.cuts.append(50_000)
    assert await push_blob(repository, BLOB, path, sizes=CHUNKED) == "done"
    assert arrived(registry)
    assert (registry.count("POST", "/uploads/"), registry.count("PUT", "/uploads/")) == (uploads, ends)


@pytest.mark.parametrize("status", [400, 405, 501])
async def test_a_registry_that_takes_no_chunks_gets_it_in_one_piece(
    repository: Repository, registry: UploadRegistry, path: Path, status: int
) -> None:
    registry.wicked = lambda request: web.Response(status=status) if request.method == "PATCH" else None
    assert await push_blob(repository, BLOB, path, sizes=CHUNKED) == "done"
    assert arrived(registry)
    assert (registry.count("PATCH", "/uploads/"), registry.count("PUT", "/uploads/")) == (1, 1)


async def test_a_registry_that_stops_reading_is_given_up(registry: UploadRegistry, tmp_path: Path) -> None:
    path, size = tmp_path / "large", 32 << 20  # more than sockets hold
    path.write_bytes(bytes(size))
    blob = Descriptor("x/y", "sha256:" + "a" * 64, size)
    true, done = registry.answer, asyncio.Event()

    async def deaf(request: web.Request) -> web.StreamResponse:
        if request.method == "PUT":
            await done.wait()
        return await true(request)

    registry.answer = deaf  # type: ignore[method-assign]
    async with Transport(retry=RetryPolicy(tries=2, first_s=0.01), stall_s=0.5) as transport:
        session = Session(transport, Tokens(transport, Credentials(())))
        repository = Repository(session, parse_reference(f"{registry.host}/team/app:1"))
        async with asyncio.timeout(60):
            with pytest.raises(RegistryUnreachable, match="no answer in time"):
                await push_blob(repository, blob, path, sizes=Sizes(single_bytes=size))
    done.set()


async def test_a_proxy_that_takes_less_gets_smaller_chunks(
    repository: Repository, registry: UploadRegistry, tmp_path: Path
) -> None:
    data = DATA * 12
    blob = Descriptor("x/y", digest_of(data), len(data))
    (tmp_path / "blob").write_bytes(data)
    registry.wicked = lambda request: (
        web.Response(status=413) if request.method == "PATCH" and (request.content_length or 0) > 1 << 20 else None
    )
    assert await push_blob(repository, blob, tmp_path / "blob", sizes=Sizes(1000, 3 << 20)) == "done"
    assert registry.blobs[blob.digest] == data


async def test_rate_limits_are_sat_out(repository: Repository, registry: UploadRegistry, path: Path) -> None:
    limits = [web.Response(status=429, headers={"Retry-After": "0"}) for _ in range(3)]
    registry.wicked = lambda request: limits.pop() if request.method in ("PATCH", "PUT") and limits else None
    assert await push_blob(repository, BLOB, path, sizes=CHUNKED) == "done"
    assert not limits
    registry.owned.clear()
    registry.wicked = lambda request: (
        web.Response(status=429, headers={"Retry-After": "3600"}) if request.method == "PATCH" else None
    )
    with pytest.raises(RateLimited) as caught:
        await push_blob(repository, BLOB, path, sizes=CHUNKED)
    assert caught.value.fields["retry_after_s"] == 3600
    assert not registry.uploads


async def test_another_digest_in_the_reply_is_an_error(repository: Repository, registry: UploadRegistry) -> None:
    registry.headers = {"Docker-Content-Digest": digest_of(b"other")}
    with pytest.raises(DigestMismatch):
        await push_blob(repository, BLOB, DATA)


async def test_content_that_is_not_the_digests_is_refused(repository: Repository, registry: UploadRegistry) -> None:
    with pytest.raises(RegistryRefused, match="DIGEST_INVALID"):
        await push_blob(repository, BLOB, DATA[::-1])
    assert registry.count("PUT", "/uploads/") == 1


async def test_a_file_of_another_length_is_not_sent(
    repository: Repository, registry: UploadRegistry, tmp_path: Path
) -> None:
    (tmp_path / "short").write_bytes(DATA[:-1])
    with pytest.raises(SizeMismatch):
        await push_blob(repository, BLOB, tmp_path / "short")
    with pytest.raises(SizeMismatch):
        await push_blob(repository, BLOB, DATA + b"x")
    with pytest.raises(BlobNotFound):
        await push_blob(repository, BLOB, tmp_path / "missing")
    assert not registry.seen("/uploads/")


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:9/x",
        "http://169.254.169.254/x",
        "//other.example/x",
        "ftp://x/",
        "http://u:p@{host}/x",
        "http://[",
    ],
)
async def test_a_blob_is_sent_nowhere_else(repository: Repository, registry: UploadRegistry, location: str) -> None:
    registry.location = lambda _: location.replace("{host}", registry.host)
    with pytest.raises(RegistryGarbage):
        await push_blob(repository, BLOB, DATA)
    assert registry.count("PUT", "") == 0


async def test_the_place_may_change_with_every_chunk(
    repository: Repository, registry: UploadRegistry, path: Path
) -> None:
    count = iter(range(100))
    registry.location = lambda true: f"http://{registry.host}{true}&n={next(count)}#x"
    assert await push_blob(repository, BLOB, path, sizes=CHUNKED) == "done"
    sent = [each.raw_path.partition("?")[2] for each in registry.requests if each.method in ("PATCH", "PUT")]
    assert sent[:3] == [f"state=a%2Fb&n={n}" for n in range(3)]
    assert sent[3] == f"state=a%2Fb&n=3&digest={BLOB.digest.replace(':', '%3A')}"


@pytest.mark.parametrize("claimed", ["0-100000", "0-999999999999", "5-9", "x", "0-9" * 40])
async def test_a_registry_that_claims_to_have_what_was_not_sent(
    repository: Repository, registry: UploadRegistry, path: Path, claimed: str
) -> None:
    registry.headers = {"Range": claimed}
    with pytest.raises(RegistryGarbage):
        await push_blob(repository, BLOB, path, sizes=CHUNKED)


async def test_a_token_is_asked_for_with_the_right_scopes(
    repository: Repository, registry: UploadRegistry, auth_file: Path, path: Path
) -> None:
    registry.auth = "token"
    log_in(auth_file, registry, auth=basic(USER, PASSWORD))
    assert await push_blob(repository, BLOB, path, mount_from="team/base", sizes=CHUNKED) == "done"
    asked = [each.query.getall("scope") for each in registry.seen("/token")]
    assert asked == [
        ["repository:team/app:pull", "repository:team/app:pull,push"],
        ["repository:team/app:pull,push", "repository:team/base:pull"],
    ]
