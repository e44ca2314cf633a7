"""What a registry sends is believed only when its digest and length say so."""

from __future__ import annotations

import pytest
from aiohttp import web

from cache.registry.client import Repository
from cache.registry.session import Session
from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import (
    ArtifactNotFound,
    BlobNotFound,
    DigestMismatch,
    InvalidReference,
    RegistryGarbage,
    RegistryRefused,
    RegistryUnreachable,
    SizeMismatch,
)
from spec.oci import MAX_MANIFEST_BYTES, Descriptor
from spec.reference import parse_reference
from tests.cache.registry.small_registry import SmallRegistry

DATA = bytes(range(256)) * 1024


@pytest.fixture
def repository(session: Session, registry: SmallRegistry) -> Repository:
    return Repository(session, parse_reference(f"{registry.host}/team/app:1"))


def described(data: bytes = DATA, size: int | None = None) -> Descriptor:
    return Descriptor("x/y", digest_of(data), len(data) if size is None else size)


async def test_a_manifest_by_tag_and_by_digest(repository: Repository, registry: SmallRegistry) -> None:
    digest = Digest(registry.add_manifest(b"{}", "1"))

    by_tag, by_digest = await repository.manifest("1"), await repository.manifest(digest=digest)
    assert by_tag == by_digest
    assert (by_tag.digest, by_tag.media_type, by_tag.data) == (digest, media_types.OCI_MANIFEST, b"{}")
    assert await repository.resolve("1") == digest
    assert registry.requests[0].path == "/v2/team/app/manifests/1"


async def test_what_is_not_there(repository: Repository) -> None:
    with pytest.raises(ArtifactNotFound):
        await repository.manifest("missing")
    with pytest.raises(BlobNotFound):
        await repository.read_blob(described())
    assert not await repository.has_blob(digest_of(DATA))


async def test_a_manifest_of_another_digest_is_refused(repository: Repository, registry: SmallRegistry) -> None:
    registry.add_manifest(b"{}", "1")
    registry.manifests[digest_of(b"wanted")] = b"{}"
    with pytest.raises(DigestMismatch):
        await repository.manifest(digest=digest_of(b"wanted"))
    registry.headers = {"Docker-Content-Digest": digest_of(b"other")}
    with pytest.raises(DigestMismatch):
        await repository.manifest("1")


async def test_a_huge_manifest_is_refused(repository: Repository, registry: SmallRegistry) -> None:
    registry.add_manifest(bytes(MAX_MANIFEST_BYTES + 1), "1")
    with pytest.raises(RegistryGarbage):
        await repository.manifest("1")


async def test_other_refusals_keep_their_status(repository: Repository, registry: SmallRegistry) -> None:
    registry.faults.append(web.Response(status=418))
    with pytest.raises(RegistryRefused) as caught:
        await repository.manifest("1")
    assert caught.value.fields["status"] == 418


async def test_a_blob_whole_and_from_the_middle(repository: Repository, registry: SmallRegistry) -> None:
    registry.add_blob(DATA)

    assert await repository.has_blob(digest_of(DATA))
    assert await repository.read_blob(described()) == DATA
    async with repository.open_blob(described(), 1000) as stream:
        assert stream.start == 1000
        assert b"".join([chunk async for chunk in stream]) == DATA[1000:]


async def test_a_registry_without_ranges_starts_over(repository: Repository, registry: SmallRegistry) -> None:
    registry.add_blob(DATA)
    registry.ranges = False
    async with repository.open_blob(described(), 1000) as stream:
        assert stream.start == 0
        assert b"".join([chunk async for chunk in stream]) == DATA


@pytest.mark.parametrize(
    "given", ["bytes 0-9/10", "bytes 1000-262143/*", "bytes 1000-262142/262144", "", "bytes a-b/c"]
)
async def test_another_range_than_asked_for_is_refused(
    repository: Repository, registry: SmallRegistry, given: str
) -> None:
    registry.add_blob(DATA)
    registry.headers = {"Content-Range": given}
    with pytest.raises(RegistryGarbage):
        async with repository.open_blob(described(), 1000):
            pass


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1, 0])
async def test_a_blob_of_another_size_is_refused(repository: Repository, registry: SmallRegistry, size: int) -> None:
    registry.add_blob(DATA)
    with pytest.raises(SizeMismatch):
        await repository.read_blob(described(size=size))


async def test_a_blob_of_another_content_is_refused(repository: Repository, registry: SmallRegistry) -> None:
    registry.blobs[digest_of(DATA)] = DATA[::-1]
    with pytest.raises(DigestMismatch):
        await repository.read_blob(described())


async def test_a_small_blob_is_bounded_before_it_is_asked_for(repository: Repository, registry: SmallRegistry) -> None:
    with pytest.raises(SizeMismatch):
        await repository.read_blob(described(size=1 << 60))
    assert not registry.requests


async def test_a_blob_that_breaks_off_is_an_error(repository: Repository, registry: SmallRegistry) -> None:
    registry.add_blob(DATA)
    registry.cut_after = 70_000
    with pytest.raises(RegistryUnreachable):
        await repository.read_blob(described())


def test_a_local_name_is_no_repository(session: Session) -> None:
    with pytest.raises(InvalidReference):
        Repository(session, parse_reference("app:1"))
