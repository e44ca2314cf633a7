"""Signatures on their way to registries and back, and pulls that ask the policy before they fetch anything."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from cache.pack import pack
from cache.registry.access import Registries
from cache.registry.client import Repository
from cache.registry.index_choice import HostPlatform
from cache.registry.manifest_upload import push_small
from cache.registry.pull import Pulled, PullOptions, pull
from cache.registry.push import push
from cache.store import Store
from cache.trust.gate import Gate
from cache.trust.keys import PrivateKey
from cache.trust.local_signatures import keep_signatures, local_signatures
from cache.trust.on_pull import PulledSignatures
from cache.trust.policy_source import PolicySource
from cache.trust.push_signatures import push_signatures
from cache.trust.remote_signatures import remote_signatures
from cache.trust.signature_manifest import (
    MAX_SIGNATURE_BLOB_BYTES,
    SignatureManifest,
    sign_v2,
    sign_v3,
    signature_tag,
)
from cache.trust.verification import NamedKey, verify
from spec import media_types
from spec.digest import Digest, digest_of, hex_of
from spec.errors import BlobNotFound, PolicyRejected, RegistryError
from spec.oci import EMPTY_DESCRIPTOR, Descriptor, ImageManifest, encode
from spec.reference import DigestSource, Reference, Source, parse_reference
from tests.cache.conftest import Packing
from tests.cache.registry.upload_registry import UploadRegistry

TEAM, CI = PrivateKey.generate(), PrivateKey.generate()


@pytest.fixture
def reference(registry: UploadRegistry) -> Reference:
    return parse_reference(f"{registry.host}/team/app:1")


@pytest.fixture
def repository(registries: Registries, reference: Reference) -> Repository:
    return registries.repository(reference)


@pytest.fixture
def digest(store: Store, packing: Packing) -> Digest:
    return pack(store, packing("app:1"))


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """The store of another host."""
    other = Store(tmp_path / "other")
    other.create()
    (other.root / "etc").mkdir()
    (other.root / "etc" / "team.pub").write_bytes(TEAM.public.pem)
    return other


def sign(store: Store, digest: Digest, key: PrivateKey) -> None:
    keep_signatures(store, digest, "app", sign_v2(digest, "app", key))
    keep_signatures(store, digest, "app", sign_v3(store.artifact(digest).descriptor, key))


def formats(signatures: list[SignatureManifest], digest: Digest, key: PrivateKey) -> list[str]:
    return sorted(each.format for each in verify(signatures, digest, [NamedKey("key", key.public)]).matches)


async def pulled(other: Store, registries: Registries, reference: Reference, *, ask: bool = True) -> Pulled:
    async def platform() -> HostPlatform:
        raise AssertionError("no index here")

    gate = Gate(other, PolicySource(other.root, None))
    async with PulledSignatures(other, gate, reference, verify=ask) as signatures:
        options = PullOptions(platform=platform, approve=signatures.approve)
        done = await pull(other, registries.repository(reference), reference, options)
        await signatures.keep(done.digest)
        return done


def demand(other: Store, rule: str = '{type = "signedBy", keys = ["team.pub"]}') -> None:
    text = f'version = 1\ndefault = [{rule}]\n[ramSnapshot]\ndefault = [{{type = "reject"}}]\n'
    (other.root / "etc" / "policy.toml").write_text(text)


async def test_signatures_go_with_the_artifact_and_come_with_it(
    store: Store, other: Store, digest: Digest, registries: Registries, repository: Repository, reference: Reference
) -> None:
    await asyncio.to_thread(sign, store, digest, TEAM)
    await push(store, digest, repository, reference)
    assert formats(await remote_signatures(repository, digest), digest, TEAM) == ["v2", "v3"]
    await pulled(other, registries, reference)
    kept = await asyncio.to_thread(local_signatures, other, digest)
    assert formats(kept, digest, TEAM) == ["v2", "v3"]
    assert formats(kept, digest, CI) == []
    listed = await asyncio.to_thread(other.referrers, digest)
    assert f"{reference.name}:{signature_tag(digest)}" in {each.name for each in listed}


async def test_signatures_of_two_hosts_add_up(
    store: Store, other: Store, digest: Digest, registries: Registries, repository: Repository, reference: Reference
) -> None:
    await asyncio.to_thread(sign, store, digest, TEAM)
    await push(store, digest, repository, reference)
    await pulled(other, registries, reference)
    await asyncio.to_thread(sign, other, digest, CI)
    local = await asyncio.to_thread(local_signatures, other, digest)
    assert await push_signatures(repository, digest, local) == 2
    assert await push_signatures(repository, digest, local) == 0
    found = await remote_signatures(repository, digest)
    assert formats(found, digest, TEAM) == formats(found, digest, CI) == ["v2", "v3"]
    await asyncio.to_thread(keep_all, store, digest, found)
    assert formats(await asyncio.to_thread(local_signatures, store, digest), digest, CI) == ["v2", "v3"]


def keep_all(store: Store, digest: Digest, found: list[SignatureManifest]) -> None:
    for each in found:
        keep_signatures(store, digest, "app", each)


async def test_the_policy_is_asked_before_blobs_are_fetched(
    store: Store,
    other: Store,
    digest: Digest,
    registry: UploadRegistry,
    registries: Registries,
    repository: Repository,
    reference: Reference,
) -> None:
    await push(store, digest, repository, reference)
    await asyncio.to_thread(demand, other)
    kernel = (await asyncio.to_thread(store.artifact, digest)).kernel.digest
    with pytest.raises(PolicyRejected, match="it has no signature"):
        await pulled(other, registries, reference)
    assert not [each for each in registry.seen(kernel) if each.method == "GET"]
    assert await asyncio.to_thread(other.list) == []
    assert not other.has_blob(digest)
    await pulled(other, registries, reference, ask=False)

    await asyncio.to_thread(sign, store, digest, CI)
    await push(store, digest, repository, reference)
    with pytest.raises(PolicyRejected, match="not made by the key"):
        await pulled(other, registries, reference)
    await asyncio.to_thread(sign, store, digest, TEAM)
    await push(store, digest, repository, reference)
    await pulled(other, registries, reference)
    gate = Gate(other, PolicySource(other.root, None))
    decision = await asyncio.to_thread(lambda: gate.decide(digest, reference, ram_snapshot=False))
    assert decision.refused is None, "what the pull brought is enough for the start"


async def test_what_is_there_already_gets_the_signatures_that_are_new(
    store: Store, other: Store, digest: Digest, registries: Registries, repository: Repository, reference: Reference
) -> None:
    await push(store, digest, repository, reference)
    await pulled(other, registries, reference)
    await asyncio.to_thread(sign, store, digest, TEAM)
    await push(store, digest, repository, reference)
    again = await pulled(other, registries, reference)
    assert again.network_bytes == 0
    assert formats(await asyncio.to_thread(local_signatures, other, digest), digest, TEAM) == ["v2", "v3"]


async def test_what_was_pulled_by_digest_is_known_by_its_repository(
    store: Store, other: Store, digest: Digest, registries: Registries, repository: Repository, reference: Reference
) -> None:
    await push(store, digest, repository, reference)
    by_digest = replace(reference, tag=None, digest=digest)
    await pulled(other, registries, by_digest)

    def policy() -> None:
        rules = f'[scopes]\n"{reference.name}" = [{{type = "accept"}}]\n[ramSnapshot]'
        path = other.root / "etc" / "policy.toml"
        demand(other)
        path.write_text(path.read_text().replace("[ramSnapshot]", rules))

    await asyncio.to_thread(policy)
    gate = Gate(other, PolicySource(other.root, None))

    def refused(source: Source) -> bool:
        return gate.decide(digest, source, ram_snapshot=False).refused is not None

    assert not await asyncio.to_thread(refused, by_digest)
    assert not await asyncio.to_thread(refused, DigestSource(hex_of(digest)))
    assert await asyncio.to_thread(refused, replace(by_digest, repository="team/other"))
    await asyncio.to_thread(other.tag, "other:1", digest)
    assert await asyncio.to_thread(refused, DigestSource(hex_of(digest)))
    assert not await asyncio.to_thread(refused, by_digest)


async def attach(repository: Repository, subject: Descriptor, bundle: bytes, kind: str, config: bytes = b"{}") -> None:
    """What anybody may push who may write to the repository."""
    layer = Descriptor(media_types.SIGSTORE_BUNDLE, digest_of(bundle), len(bundle))
    described = replace_config(config)
    manifest = ImageManifest(2, media_types.OCI_MANIFEST, described, [layer], artifact_type=kind, subject=subject)
    await push_small(repository, encode(manifest), [(described, config), (layer, bundle)])


def replace_config(config: bytes) -> Descriptor:
    return EMPTY_DESCRIPTOR if config == b"{}" else Descriptor("application/x", digest_of(config), len(config))


async def test_garbage_beside_a_signature_does_not_hide_it(
    store: Store, other: Store, digest: Digest, registries: Registries, repository: Repository, reference: Reference
) -> None:
    await asyncio.to_thread(sign, store, digest, TEAM)
    await push(store, digest, repository, reference)
    subject = (await asyncio.to_thread(store.artifact, digest)).descriptor
    await attach(repository, subject, b"garbage", media_types.SIGSTORE_BUNDLE)
    await attach(repository, subject, b"a" * (MAX_SIGNATURE_BLOB_BYTES + 1), media_types.SIGSTORE_BUNDLE)
    await attach(repository, subject, b"sbom", "application/spdx+json")
    await attach(repository, subject, b"x", media_types.SIGSTORE_BUNDLE, config=b"c" * (MAX_SIGNATURE_BLOB_BYTES + 1))
    await asyncio.to_thread(demand, other)
    await pulled(other, registries, reference)
    found = await asyncio.to_thread(local_signatures, other, digest)
    assert formats(found, digest, TEAM) == ["v2", "v3"]
    assert all(len(blob) <= MAX_SIGNATURE_BLOB_BYTES for each in found for blob in each.blobs.values())


async def test_something_else_at_the_tag_is_no_signature(
    store: Store, digest: Digest, repository: Repository, reference: Reference
) -> None:
    await asyncio.to_thread(sign, store, digest, TEAM)
    await push(store, digest, repository, reference)
    artifact = await asyncio.to_thread(store.artifact, digest)
    await push_small(repository, artifact.oci_bytes, [], tag=signature_tag(digest))
    assert formats(await remote_signatures(repository, digest), digest, TEAM) == ["v3"]


async def test_the_signature_of_another_artifact_moved_here_does_not_count(
    store: Store, digest: Digest, packing: Packing, repository: Repository, reference: Reference
) -> None:
    await push(store, digest, repository, reference)
    second = await asyncio.to_thread(pack, store, packing("second:1", args="quiet"))
    made = sign_v2(second, "app", TEAM)
    parts = json.loads(made.data)
    blobs = [
        (Descriptor(each["mediaType"], each["digest"], each["size"]), made.blobs[each["digest"]])
        for each in (parts["config"], *parts["layers"])
    ]
    await push_small(repository, made.data, blobs, tag=signature_tag(digest))
    assert formats(await remote_signatures(repository, digest), digest, TEAM) == []


async def test_a_registry_that_fails_on_signatures_does_not_keep_an_artifact_from_being_pulled(
    store: Store,
    other: Store,
    digest: Digest,
    registry: UploadRegistry,
    registries: Registries,
    repository: Repository,
    reference: Reference,
) -> None:
    await asyncio.to_thread(sign, store, digest, TEAM)
    await push(store, digest, repository, reference)
    registry.wicked = lambda request: web.Response(status=403) if ".sig" in request.path else None
    await pulled(other, registries, reference)
    assert await asyncio.to_thread(local_signatures, other, digest) == []
    await asyncio.to_thread(demand, other)
    with pytest.raises(RegistryError):
        await pulled(other, registries, reference)


async def test_a_pull_that_fails_fetches_no_signatures_any_more(
    store: Store,
    other: Store,
    digest: Digest,
    registry: UploadRegistry,
    registries: Registries,
    repository: Repository,
    reference: Reference,
) -> None:
    await push(store, digest, repository, reference)
    kernel = (await asyncio.to_thread(store.artifact, digest)).kernel.digest
    registry.wicked = lambda request: web.Response(status=404) if request.path.endswith(kernel) else None
    with pytest.raises(BlobNotFound):
        await pulled(other, registries, reference)
    assert "fetch signatures" not in {task.get_name() for task in asyncio.all_tasks()}
