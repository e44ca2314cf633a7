"""Artifacts of a store in a registry: their manifests last, no byte that is there already, and nothing unasked."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from cache.artifact import Artifact
from cache.pack import pack
from cache.registry.blob_places import BlobPlaces
from cache.registry.client import Repository
from cache.registry.index_choice import HostPlatform
from cache.registry.manifest_upload import push_small
from cache.registry.pull import PullOptions, pull
from cache.registry.push import Pushed, push
from cache.registry.referrer_index import fallback_tag
from cache.registry.referrers import list_referrers, signatures_by_tag
from cache.registry.session import Session
from cache.registry.upload import Sizes
from cache.store import Store
from cache.trust.keys import PrivateKey
from cache.trust.local_signatures import keep_signatures
from cache.trust.signature_manifest import SignatureManifest, decode_signature_manifest, sign_v2, sign_v3
from cache.trust.verification import NamedKey, verify
from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import (
    ArtifactNotFound,
    AuthenticationFailed,
    BlobNotFound,
    DigestMismatch,
    InvalidReference,
    RegistryRefused,
)
from spec.oci import EMPTY_DESCRIPTOR, Descriptor, ImageManifest, encode
from spec.reference import parse_reference
from tests.cache.conftest import Packing
from tests.cache.docker_registry import docker_registry
from tests.cache.registry.conftest import log_in
from tests.cache.registry.small_registry import basic, serving
from tests.cache.registry.upload_registry import UploadRegistry
from tests.cache.test_snapshot_artifact import RAM, snapshot


@pytest.fixture
async def registry() -> AsyncIterator[UploadRegistry]:
    async with serving(UploadRegistry()) as registry:
        yield registry


@pytest.fixture
def base(store: Store, packing: Packing) -> Artifact:
    return _packed(store, packing)


def _packed(store: Store, packing: Packing) -> Artifact:
    return store.artifact(pack(store, packing()))


async def pushed(store: Store, artifact: Artifact, session: Session, name: str) -> Pushed:
    reference = parse_reference(name)
    sizes = Sizes(single_bytes=1 << 20, chunk_bytes=4 << 20)
    return await push(store, artifact.digest, Repository(session, reference), reference, sizes=sizes)


async def test_an_artifact_is_there_under_its_tag(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry
) -> None:
    begun: list[Artifact] = []
    reference = parse_reference(f"{registry.host}/team/demo:base")
    result = await push(store, base.digest, Repository(session, reference), reference, begin=begun.append)

    assert begun == [base]
    assert registry.tags["team/demo", "base"] == base.digest
    assert registry.manifests[base.digest] == base.oci_bytes
    assert registry.owned["team/demo"] == {each.digest for each in base.blobs}
    assert (result.digest, result.subject, result.blobs) == (base.digest, None, len(base.blobs))
    assert (result.sent_bytes, result.there_bytes) == (sum(each.size for each in base.blobs), 0)
    assert registry.requests[-1].path.endswith("/manifests/base")

    again = await push(store, base.digest, Repository(session, reference), reference)
    assert (again.sent_bytes, again.there_bytes) == (0, result.sent_bytes)


async def test_without_a_tag_it_is_there_by_its_digest(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry
) -> None:
    await pushed(store, base, session, f"{registry.host}/demo@{base.digest}")
    assert set(registry.tags) == {("demo", base.digest)}
    with pytest.raises(InvalidReference):
        await pushed(store, base, session, f"{registry.host}/demo@{digest_of(b'x')}")


async def test_another_repository_of_the_registry_gives_its_blobs(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry
) -> None:
    first = await pushed(store, base, session, f"{registry.host}/team/one:1")
    second = await pushed(store, base, session, f"{registry.host}/team/two:1")
    assert (second.sent_bytes, second.mounted_bytes) == (0, first.sent_bytes)
    registry.owned.clear()
    third = await pushed(store, base, session, f"{registry.host}/team/three:1")
    assert (third.sent_bytes, third.mounted_bytes) == (first.sent_bytes, 0)


async def test_what_was_pulled_from_there_is_mounted_too(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry, tmp_path: Path
) -> None:
    source = parse_reference(f"{registry.host}/team/one:1")
    await pushed(store, base, session, str(source))
    other = await asyncio.to_thread(_made, tmp_path / "other")
    await pull(other, Repository(session, source), source, PullOptions(platform=_nothing))
    result = await pushed(other, base, session, f"{registry.host}/team/two:1")
    assert (result.sent_bytes, result.mounted_bytes) == (0, sum(each.size for each in base.blobs))
    await asyncio.to_thread(other.close)


def _made(root: Path) -> Store:
    store = Store(root)
    store.create()
    return store


async def _nothing() -> HostPlatform:
    raise AssertionError("it is no index")


CANARY = "c4n4ry-in-the-password"


@pytest.mark.parametrize("auth", ["basic", "token"])
@pytest.mark.parametrize("field", ["auth", "identitytoken", "registrytoken"])
async def test_no_secret_is_told_when_a_push_is_denied(
    store: Store,
    base: Artifact,
    session: Session,
    registry: UploadRegistry,
    auth_file: Path,
    caplog: pytest.LogCaptureFixture,
    auth: str,
    field: str,
) -> None:
    caplog.set_level("DEBUG")
    registry.auth = auth
    encoded = basic("me", CANARY)
    log_in(auth_file, registry, **{field: encoded if field == "auth" else CANARY})
    with pytest.raises(AuthenticationFailed) as caught:
        await pushed(store, base, session, f"{registry.host}/team/demo:1")
    error = caught.value
    told = "".join(traceback.format_exception(error)) + repr(error.fields) + error.remedy + caplog.text
    assert CANARY not in told
    assert encoded not in told


async def test_a_snapshot_brings_its_base_with_it(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry
) -> None:
    made = await asyncio.to_thread(snapshot, store, base, [])
    result = await pushed(store, made, session, f"{registry.host}/team/demo:fast")
    assert result.subject == "pushed"
    assert registry.manifests[base.digest] == base.oci_bytes
    assert ("team/demo", "base") not in registry.tags
    puts = [
        each.path.rpartition("/")[2] for each in registry.requests if each.method == "PUT" and "manifests" in each.path
    ]
    assert puts == [base.digest, "fast"]
    found = await list_referrers(Repository(session, result.reference), base.digest)
    assert [each.digest for each in found] == [made.digest]

    again = await pushed(store, made, session, f"{registry.host}/team/demo:fast")
    assert (again.subject, again.sent_bytes) == ("there", 0)


async def test_the_memory_of_a_base_is_not_sent_unasked(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry
) -> None:
    first = await asyncio.to_thread(snapshot, store, base, [])
    second = await asyncio.to_thread(snapshot, store, first, [], "demo:second", ram=b"another memory")
    result = await pushed(store, second, session, f"{registry.host}/demo:second")
    assert result.subject == "absent"
    assert first.ramsnap is not None
    assert first.ramsnap.digest not in registry.blobs
    assert registry.tags["demo", "second"] == second.digest


async def test_layers_of_memory_go_to_a_registry_and_come_back_together(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry, tmp_path: Path
) -> None:
    first = await asyncio.to_thread(snapshot, store, base, [])
    parents = (digest_of(RAM),)
    second = await asyncio.to_thread(snapshot, store, first, [], "demo:second", ram=b"a layer", parents=parents)
    result = await pushed(store, second, session, f"{registry.host}/demo:second")
    assert {digest_of(RAM), digest_of(b"a layer")} <= registry.blobs.keys()
    other = await asyncio.to_thread(_made, tmp_path / "other")
    await pull(other, Repository(session, result.reference), result.reference, PullOptions(platform=_nothing))
    pulled = await asyncio.to_thread(other.artifact, second.digest)
    assert [each.digest for each in pulled.ramsnap_parents] == list(parents)
    assert all([await asyncio.to_thread(other.has_blob, each.content_digest) for each in pulled.blobs])
    await asyncio.to_thread(other.close)


async def test_a_base_that_is_gone_keeps_nobody_from_pushing(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry
) -> None:
    made = await asyncio.to_thread(snapshot, store, base, [])
    store.blob_path(base.digest).unlink()
    result = await pushed(store, made, session, f"{registry.host}/demo:fast")
    assert result.subject == "absent"


async def test_the_signatures_of_the_store_go_with_it(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry
) -> None:
    keys = [PrivateKey.generate() for _ in range(2)]
    named = [NamedKey(str(n), key.public) for n, key in enumerate(keys)]

    async def sign(key: PrivateKey) -> None:
        for signatures in (sign_v2(base.digest, "demo", key), sign_v3(base.descriptor, key)):
            await asyncio.to_thread(keep_signatures, store, base.digest, "demo", signatures)

    await sign(keys[0])
    first = await pushed(store, base, session, f"{registry.host}/demo:1")
    assert first.signatures == 2
    order = [each.path.rpartition("/")[2] for each in registry.requests if "/manifests/" in each.path]
    assert order[-1] == "1", "who finds the tag finds the signatures"
    assert (await pushed(store, base, session, f"{registry.host}/demo:1")).signatures == 0

    await asyncio.to_thread(_forget_signatures, store, base)
    await sign(keys[1])
    assert (await pushed(store, base, session, f"{registry.host}/demo:1")).signatures == 2
    repository = Repository(session, first.reference)
    bundles = await list_referrers(repository, base.digest, media_types.SIGSTORE_BUNDLE)
    assert len(bundles) == 2
    tagged = await signatures_by_tag(repository, base.digest)
    assert tagged is not None
    layers = decode_signature_manifest(tagged.data).layers
    blobs = {each.content_digest: await repository.read_blob(each) for each in layers}
    found = verify([SignatureManifest(tagged.data, blobs)], base.digest, named)
    assert {match.key.name for match in found.matches} == {"0", "1"}, "both signatures are at the tag"


def _forget_signatures(store: Store, artifact: Artifact) -> None:
    index = store.root / "index.json"
    document = json.loads(index.read_text())
    document["manifests"] = [each for each in document["manifests"] if each["digest"] == artifact.digest]
    index.write_text(json.dumps(document))


async def test_what_is_not_here_can_not_be_pushed(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry
) -> None:
    reference = parse_reference(f"{registry.host}/demo:1")
    repository = Repository(session, reference)
    with pytest.raises(ArtifactNotFound):
        await push(store, digest_of(b"x"), repository, reference)
    store.blob_path(base.kernel.content_digest).unlink()
    with pytest.raises(BlobNotFound):
        await push(store, base.digest, repository, reference)
    assert not registry.tags


async def test_a_damaged_blob_is_told_from_a_refusal(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry
) -> None:
    path = store.blob_path(base.kernel.content_digest)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DigestMismatch):
        await pushed(store, base, session, f"{registry.host}/demo:1")
    assert not registry.tags


async def test_a_registry_that_refuses_the_manifest(
    store: Store, base: Artifact, session: Session, registry: UploadRegistry
) -> None:
    registry.wicked = lambda request: (
        web.json_response({"errors": [{"code": "MANIFEST_INVALID"}]}, status=400)
        if request.method == "PUT" and "/manifests/" in request.path
        else None
    )
    with pytest.raises(RegistryRefused, match="MANIFEST_INVALID"):
        await pushed(store, base, session, f"{registry.host}/demo:1")


async def test_a_push_can_be_given_up(store: Store, base: Artifact, session: Session, registry: UploadRegistry) -> None:
    reached, go = asyncio.Event(), asyncio.Event()
    true = registry.answer

    async def stand_still(request: web.Request) -> web.StreamResponse:
        if request.method == "PUT":
            reached.set()
            await go.wait()
        return await true(request)

    registry.answer = stand_still  # type: ignore[method-assign]
    task = asyncio.create_task(pushed(store, base, session, f"{registry.host}/demo:1"))
    async with asyncio.timeout(30):
        await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    registry.answer = true  # type: ignore[method-assign]
    assert not registry.tags
    assert await asyncio.to_thread(store.remove_unreferenced) == []
    await pushed(store, base, session, f"{registry.host}/demo:1")
    assert registry.tags["demo", "1"] == base.digest


def test_places_are_remembered_within_bounds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    places = BlobPlaces(store.root / "ovms.blobs", store.temp)
    a, b, c = (digest_of(each) for each in (b"a", b"b", b"c"))
    assert places.elsewhere("host", "x") == {}
    places.note("host", "x", [a, b])
    places.note("host", "y", [a])
    places.note("other", "z", [a, b])
    assert places.elsewhere("host", "new") == {a: "y", b: "x"}
    assert places.elsewhere("host", "x") == {}
    assert places.elsewhere("host", "y") == {b: "x"}
    monkeypatch.setattr("cache.registry.blob_places._MAX_BLOBS", 2)
    places.note("host", "x", [c])
    assert places.elsewhere("host", "new") == {b: "x", c: "x"}
    (store.root / "ovms.blobs" / "places.json").write_text("[")
    assert places.elsewhere("host", "new") == {}
    places.note("host", "x", [c])
    assert places.elsewhere("host", "new") == {c: "x"}
    nowhere = BlobPlaces(store.root / "missing", store.temp)
    nowhere.note("host", "x", [c])
    assert nowhere.elsewhere("host", "new") == {}, "it is only a hint"


# --- real peers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def real_registry(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path) as address:
        yield address


@pytest.mark.real
async def test_docker_registry_takes_it_and_skopeo_gives_it_back(
    store: Store,
    packing: Packing,
    session: Session,
    real_registry: str,
    tmp_path: Path,
) -> None:
    """Large enough for several chunks; without the referrers API, so that the base is found by a tag."""
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    base = await asyncio.to_thread(_packed, store, packing)
    made = await asyncio.to_thread(snapshot, store, base, [], ram=random.Random(1).randbytes(9 << 20))

    result = await pushed(store, made, session, f"{real_registry}/team/demo:fast")
    assert result.subject == "pushed"
    other = await pushed(store, made, session, f"{real_registry}/other/demo:fast")
    assert (other.sent_bytes, other.mounted_bytes) == (0, result.sent_bytes)
    again = await pushed(store, made, session, f"{real_registry}/team/demo:fast")
    assert (again.sent_bytes, again.there_bytes) == (0, sum(each.size for each in made.blobs))

    repository = Repository(session, result.reference)
    assert [each.digest for each in await list_referrers(repository, base.digest)] == [made.digest]
    index = await repository.manifest(fallback_tag(base.digest))
    assert index.media_type == media_types.OCI_INDEX
    for tag, digest in (("fast", made.digest), (fallback_tag(base.digest), index.digest)):
        assert (
            digest_of(
                await _skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{real_registry}/team/demo:{tag}")
            )
            == digest
        )

    await _skopeo(
        "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false",
        f"docker://{real_registry}/team/demo:fast", f"oci:{tmp_path / 'back'}:team/demo:fast",
    )  # fmt: skip
    await asyncio.to_thread(_check_copy, tmp_path / "back", made)


def _check_copy(root: Path, made: Artifact) -> None:
    back = Store(root)
    back.create()
    assert back.resolve(parse_reference("team/demo:fast")) == made.digest
    copied = back.artifact(made.digest)
    assert copied.oci_bytes == made.oci_bytes
    for blob in copied.blobs:
        back.verify_blob(blob)


async def _skopeo(*args: str | Path) -> bytes:
    done = await asyncio.to_thread(subprocess.run, ["skopeo", *args], check=True, capture_output=True, timeout=60)
    return done.stdout


@pytest.mark.real
async def test_referrers_in_docker_registry(
    store: Store, packing: Packing, session: Session, real_registry: str
) -> None:
    base = await asyncio.to_thread(_packed, store, packing)
    result = await pushed(store, base, session, f"{real_registry}/demo:base")
    repository = Repository(session, result.reference)
    digests: list[Digest] = []
    for content in (b"one", b"two"):
        layer = Descriptor("application/spdx+json", digest_of(content), len(content))
        sbom = encode(
            ImageManifest(
                2, media_types.OCI_MANIFEST, EMPTY_DESCRIPTOR, [layer],
                artifact_type="application/spdx+json", subject=base.descriptor,
            )
        )  # fmt: skip
        blobs = [(EMPTY_DESCRIPTOR, media_types.EMPTY_CONFIG), (layer, content)]
        digests.append(await push_small(repository, sbom, blobs))
    assert [each.digest for each in await list_referrers(repository, base.digest, "application/spdx+json")] == digests
    assert await list_referrers(repository, base.digest, "x/y") == []
