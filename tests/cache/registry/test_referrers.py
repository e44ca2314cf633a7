"""Referrers are found with and without the API, and what an index says of them is not believed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from cache.registry import referrer_index, referrers
from cache.registry.client import Repository
from cache.registry.manifest_upload import push_manifest, push_small, put_manifest
from cache.registry.referrer_index import fallback_tag
from cache.registry.referrers import list_referrers, signature_tag, signatures_by_tag
from cache.registry.session import Session
from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import Conflict, DigestMismatch, InvalidManifest, RegistryGarbage, RegistryRefused
from spec.oci import EMPTY_DESCRIPTOR, Descriptor, ImageManifest, encode
from spec.reference import parse_reference
from tests.cache.registry.small_registry import serving
from tests.cache.registry.upload_registry import UploadRegistry

SBOM, SIGNATURE = "application/spdx+json", "application/vnd.dev.sigstore.bundle.v0.3+json"
EMPTY = (EMPTY_DESCRIPTOR, media_types.EMPTY_CONFIG)


@pytest.fixture(params=[True, False], ids=["api", "tag"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[UploadRegistry]:
    async with serving(UploadRegistry(referrers_api=request.param)) as registry:
        yield registry


@pytest.fixture
def repository(session: Session, registry: UploadRegistry) -> Repository:
    return Repository(session, parse_reference(f"{registry.host}/team/app:1"))


def manifest(subject: Descriptor | None = None, kind: str = SBOM, content: bytes = b"sbom") -> bytes:
    layer = Descriptor(kind, digest_of(content), len(content))
    return encode(
        ImageManifest(
            2,
            media_types.OCI_MANIFEST,
            EMPTY_DESCRIPTOR,
            [layer],
            artifact_type=kind,
            subject=subject,
            annotations={"made": "by hand"},
        )
    )


async def push(
    repository: Repository, subject: Descriptor | None, kind: str = SBOM, content: bytes = b"sbom"
) -> Digest:
    layer = Descriptor(kind, digest_of(content), len(content))
    return await push_small(repository, manifest(subject, kind, content), [EMPTY, (layer, content)])


@pytest.fixture
async def subject(repository: Repository) -> Descriptor:
    data = manifest()
    await push(repository, None)
    return Descriptor(media_types.OCI_MANIFEST, digest_of(data), len(data))


async def test_pushed_referrers_are_listed_by_type(repository: Repository, subject: Descriptor) -> None:
    first = await push(repository, subject)
    second = await push(repository, subject, SIGNATURE, b"signature")
    await push(repository, Descriptor("x/y", digest_of(b"other"), 5))

    found = {each.digest: each for each in await list_referrers(repository, subject.content_digest)}
    assert found.keys() == {first, second}
    assert found[first].artifact_type == SBOM
    assert found[first].annotations == {"made": "by hand"}
    assert found[second].layers == (Descriptor(SIGNATURE, digest_of(b"signature"), 9),)
    assert found[second].total_bytes == len(found[second].data) + 9
    only = await list_referrers(repository, subject.content_digest, SIGNATURE)
    assert [each.digest for each in only] == [second]


async def test_nothing_refers_to_what_is_new(repository: Repository) -> None:
    assert await list_referrers(repository, digest_of(b"x")) == []


async def test_the_tag_is_for_registries_without_the_api(
    repository: Repository, registry: UploadRegistry, subject: Descriptor
) -> None:
    for _ in range(2):  # the second time it is listed already
        digest = await push(repository, subject)
    tag = fallback_tag(subject.content_digest)
    listed = registry.tags.get(("team/app", tag))
    if registry.referrers_api:
        assert listed is None
        assert not registry.seen("/referrers/")
    else:
        assert listed is not None
        index = json.loads(registry.manifests[listed])
        assert index["manifests"] == [
            {
                "mediaType": media_types.OCI_MANIFEST,
                "digest": digest,
                "size": len(manifest(subject)),
                "annotations": {"made": "by hand"},
                "artifactType": SBOM,
            }
        ]


async def test_a_registry_with_the_api_that_does_not_say_so(
    repository: Repository, registry: UploadRegistry, subject: Descriptor
) -> None:
    registry.after = _without_subject
    digest = await push(repository, subject)
    assert [each.digest for each in await list_referrers(repository, subject.content_digest)] == [digest]
    assert (("team/app", fallback_tag(subject.content_digest)) in registry.tags) != registry.referrers_api


def _without_subject(request: web.Request) -> web.Response | None:
    return web.Response(status=201) if request.method == "PUT" else None


async def test_what_others_wrote_into_the_index_stays(
    repository: Repository, registry: UploadRegistry, subject: Descriptor
) -> None:
    if registry.referrers_api:
        pytest.skip("there is no such index")
    digest = await push(repository, subject, SIGNATURE, b"signature")
    tag = fallback_tag(subject.content_digest)
    entry = {"mediaType": media_types.OCI_MANIFEST, "digest": digest, "size": 1, "x-theirs": {"a": 1}}
    theirs = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [entry], "x-theirs": 1}
    await put_manifest(repository, json.dumps(theirs).encode(), tag=tag, media_type=media_types.OCI_INDEX)

    await push(repository, subject)
    index = json.loads(registry.manifests[registry.tags["team/app", tag]])
    assert index["x-theirs"] == 1
    assert index["manifests"][0] == entry
    assert len(index["manifests"]) == 2


async def test_a_change_that_another_one_swallowed_is_made_again(
    repository: Repository, registry: UploadRegistry, subject: Descriptor
) -> None:
    if registry.referrers_api:
        pytest.skip("there is no such index")
    tag = fallback_tag(subject.content_digest)
    swallows = [2]

    def swallow(request: web.Request) -> web.Response | None:
        if request.method == "PUT" and request.path.endswith(tag) and swallows[0]:
            swallows[0] -= 1
            del registry.tags["team/app", tag]
        return None

    registry.after = swallow
    digest = await push(repository, subject)
    assert [each.digest for each in await list_referrers(repository, subject.content_digest)] == [digest]
    swallows[0] = 100
    with pytest.raises(Conflict):
        await push(repository, subject, SIGNATURE, b"signature")


async def test_entries_that_lie_are_left_out(
    repository: Repository, registry: UploadRegistry, subject: Descriptor
) -> None:
    true = await push(repository, subject)
    unrelated = await push(repository, None, SIGNATURE, b"signature")
    await put_manifest(repository, b'{"mediaType": 5}', tag="broken")
    entries = [
        {"mediaType": "x/y", "digest": true, "size": 1, "artifactType": "application/vnd.oci.empty.v1+json"},
        {"mediaType": "x/y", "digest": unrelated, "size": 1, "artifactType": SBOM},
        {"mediaType": "x/y", "digest": digest_of(b"missing"), "size": 1, "artifactType": SBOM},
        {"mediaType": "x/y", "digest": digest_of(b'{"mediaType": 5}'), "size": 1, "artifactType": SBOM},
        {"mediaType": "x/y", "digest": true, "size": 1, "artifactType": SBOM},
    ]
    _list(registry, subject, entries)
    found = await list_referrers(repository, subject.content_digest, SBOM)
    assert [(each.digest, each.artifact_type) for each in found] == [(true, SBOM)]


def _list(registry: UploadRegistry, subject: Descriptor, entries: list[dict[str, object]]) -> None:
    body = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries}).encode()

    def lie(request: web.Request) -> web.Response | None:
        api, tag = f"/referrers/{subject.digest}", f"/manifests/{fallback_tag(subject.content_digest)}"
        if request.path.endswith(api if registry.referrers_api else tag):
            return web.Response(body=body, headers={"Content-Type": media_types.OCI_INDEX})
        return None

    registry.wicked = lie


async def test_too_many_are_an_error_and_not_opened(
    repository: Repository, registry: UploadRegistry, subject: Descriptor
) -> None:
    count = referrer_index.MAX_REFERRERS + 1
    _list(registry, subject, [{"mediaType": "x/y", "digest": digest_of(b"%d" % n), "size": 1} for n in range(count)])
    with pytest.raises(RegistryGarbage):
        await list_referrers(repository, subject.content_digest)
    assert registry.count("GET", "/manifests/sha256:") == 0


async def test_too_large_ones_are_an_error(
    repository: Repository, subject: Descriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push(repository, subject)
    monkeypatch.setattr(referrers, "MAX_TOTAL_BYTES", len(manifest(subject)))
    assert len(await list_referrers(repository, subject.content_digest)) == 1
    await push(repository, subject, SIGNATURE, b"signature")
    with pytest.raises(RegistryGarbage):
        await list_referrers(repository, subject.content_digest)


async def test_a_list_that_is_none(repository: Repository, registry: UploadRegistry, subject: Descriptor) -> None:
    _list(registry, subject, [{"digest": "x"}])
    with pytest.raises(InvalidManifest):
        await list_referrers(repository, subject.content_digest)


async def test_pages_are_followed_on_the_registry_only(
    repository: Repository, registry: UploadRegistry, subject: Descriptor
) -> None:
    if not registry.referrers_api:
        pytest.skip("an index has no pages")
    digests = {await push(repository, subject, SBOM, b"%d" % n) for n in range(5)}
    registry.page_size = 2
    assert {each.digest for each in await list_referrers(repository, subject.content_digest)} == digests
    assert len(registry.seen("/referrers/")) == 3
    registry.location = lambda _: "http://169.254.169.254/secret"
    with pytest.raises(RegistryGarbage):
        await list_referrers(repository, subject.content_digest)
    registry.location = lambda true: true.replace("start=4", "start=0").replace("start=2", "start=0")
    with pytest.raises(RegistryGarbage):
        await list_referrers(repository, subject.content_digest)


@pytest.mark.parametrize("status", [400, 405, 501])
async def test_a_registry_may_say_in_other_words_that_it_has_no_api(
    repository: Repository, registry: UploadRegistry, subject: Descriptor, status: int
) -> None:
    registry.referrers_api = False
    registry.wicked = lambda request: web.Response(status=status) if "/referrers/" in request.path else None
    digest = await push(repository, subject)
    assert [each.digest for each in await list_referrers(repository, subject.content_digest)] == [digest]


async def test_a_site_that_answers_everything_has_no_api(
    repository: Repository, registry: UploadRegistry, subject: Descriptor
) -> None:
    page = web.Response(text="<html>", content_type="text/html")
    registry.wicked = lambda request: page if "/referrers/" in request.path else None
    assert await list_referrers(repository, subject.content_digest) == []


async def test_the_signatures_of_cosign_are_a_tag(repository: Repository, subject: Descriptor) -> None:
    assert await signatures_by_tag(repository, subject.content_digest) is None
    layer = Descriptor("application/vnd.dev.cosign.simplesigning.v1+json", digest_of(b"{}"), 2)
    data = manifest(kind=layer.media_type, content=b"{}")
    tag = signature_tag(subject.content_digest)
    assert tag == subject.digest.replace(":", "-") + ".sig"
    await push_small(repository, data, [EMPTY, (layer, b"{}")], tag=tag)
    found = await signatures_by_tag(repository, subject.content_digest)
    assert found is not None
    assert (found.data, found.digest, found.artifact_type) == (data, digest_of(data), layer.media_type)


async def test_a_manifest_without_its_blobs_is_refused(repository: Repository) -> None:
    with pytest.raises(RegistryRefused, match="MANIFEST_BLOB_UNKNOWN"):
        await push_manifest(repository, manifest())


async def test_a_manifest_that_becomes_another_one(repository: Repository, registry: UploadRegistry) -> None:
    await push(repository, None)
    registry.headers = {"Docker-Content-Digest": digest_of(b"other")}
    with pytest.raises(DigestMismatch):
        await push_manifest(repository, manifest(), tag="1")
