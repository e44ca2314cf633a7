"""Starts of what is in a registry, by policy; and what a pull tells meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cache.artifact import Artifact
from cache.pack import PackRequest, pack
from cache.store import Store
from ovms_supervisor.events import EventHub
from ovms_supervisor.transfer_events import TransferEvents
from spec import media_types
from spec.api import Overrides, PullPolicy, StartRequest
from spec.digest import digest_of, parse_digest
from spec.errors import ArtifactNotFound, PolicyRejected, RegistryUnreachable
from spec.instance import InstanceState
from spec.oci import EMPTY_DESCRIPTOR, Descriptor, ImageManifest, encode
from spec.reference import parse_reference
from tests.cache.registry.small_registry import SmallRegistry, serving
from tests.supervisor.conftest import GUEST_MEMORY, Site

RUNNING = InstanceState.RUNNING


@pytest.fixture
async def registry() -> AsyncIterator[SmallRegistry]:
    async with serving(SmallRegistry()) as registry:
        yield registry


def put(registry: SmallRegistry, tmp_path: Path, kernel: Path, args: str = "") -> Artifact:
    """Make ``app:1`` of the registry."""
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.create()
    mine = tmp_path / "kernel"
    mine.write_bytes(kernel.read_bytes() + b"mine")  # the site has the other one
    request = PackRequest(name=parse_reference("app:1"), kernel=mine, memory_bytes=GUEST_MEMORY, cpus=1, args=args)
    artifact = elsewhere.artifact(pack(elsewhere, request))
    registry.add_manifest(artifact.oci_bytes, "1")
    for blob in artifact.blobs:
        registry.add_blob(elsewhere.blob_path(blob.content_digest).read_bytes())
    elsewhere.close()
    return artifact


@pytest.fixture
async def app(registry: SmallRegistry, tmp_path: Path, guest_kernel: Path) -> Artifact:
    return await asyncio.to_thread(put, registry, tmp_path, guest_kernel)


def request(registry: SmallRegistry, pull: PullPolicy = "missing", what: str = "app:1") -> StartRequest:
    return StartRequest(manifest=f"{registry.host}/{what}", overrides=Overrides(), pull=pull)


async def test_what_is_missing_is_pulled_once(site: Site, registry: SmallRegistry, app: Artifact) -> None:
    async with site.daemon() as supervisor:
        started = await asyncio.gather(*(supervisor.start(request(registry)) for _ in range(3)))
        for instance in started:
            assert await instance.wait_for(RUNNING) is RUNNING
            assert instance.record.manifest.digest == app.digest
            assert instance.record.manifest.ref == f"{registry.host}/app:1"
    assert len(registry.seen("/manifests/1")) == 1
    assert len(registry.seen("/blobs/")) == 2, "manifest.json and kernel"


async def test_never_and_always(
    site: Site, registry: SmallRegistry, app: Artifact, tmp_path: Path, guest_kernel: Path
) -> None:
    async with site.daemon() as supervisor:
        with pytest.raises(ArtifactNotFound):
            await supervisor.start(request(registry, "never"))
        assert not registry.requests
        await supervisor.start(request(registry))
        other = await asyncio.to_thread(put, registry, tmp_path, guest_kernel, "other")
        for policy, expected in (("missing", app), ("never", app), ("always", other)):
            instance = await supervisor.start(request(registry, policy))  # type: ignore[arg-type]
            assert instance.record.manifest.digest == expected.digest, policy


async def test_by_digest(site: Site, registry: SmallRegistry, app: Artifact) -> None:
    async with site.daemon() as supervisor:
        instance = await supervisor.start(request(registry, what=f"app@{app.digest}"))
        assert await instance.wait_for(RUNNING) is RUNNING


async def test_what_cannot_be_had_starts_nothing(site: Site, registry: SmallRegistry, app: Artifact) -> None:
    async with site.daemon() as supervisor:
        with pytest.raises(ArtifactNotFound):
            await supervisor.start(request(registry, what="app:2"))
        del registry.blobs[app.kernel.digest]
        registry.cut_after = 0
        with pytest.raises(RegistryUnreachable):
            await supervisor.start(request(registry))
        assert not supervisor.instances()


async def not_from_the_store(*_: object) -> None:
    raise AssertionError("the image is made while it arrives")


async def other_host(site: Site, registry: SmallRegistry) -> dict[str, Any]:
    """The settings of a second host; of the first one, a snapshot is in the registry as ``app:warm``."""
    async with site.daemon() as supervisor:
        original = await supervisor.start(StartRequest(manifest="guest:plain", overrides=Overrides()))
        await original.wait_for(RUNNING)
        reply = await supervisor.snapshot(original, "warm")
        store = supervisor._host.store
        artifact = await asyncio.to_thread(store.artifact, parse_digest(reply.snapshot_ref))
        registry.add_manifest(artifact.oci_bytes, "warm")
        for blob in artifact.blobs:
            registry.add_blob(await asyncio.to_thread(store.blob_path(blob.content_digest).read_bytes))
    root = site.directory / "second"
    await asyncio.to_thread(Store(root).create)
    return {"root": root, "run_dir": site.directory / "second-run", "image_dir": site.directory / "second-images"}


async def test_a_snapshot_is_resident_when_it_has_arrived(
    site: Site, registry: SmallRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = await other_host(site, registry)

    monkeypatch.setattr("cache.resident.loader.Loader.load", not_from_the_store)
    async with site.daemon(**second) as supervisor:
        pulled = await supervisor.pull(parse_reference(f"{registry.host}/app:warm"), "always", resident=True)
        assert pulled.resident_ms is not None
        assert pulled.resident_bytes == GUEST_MEMORY
        assert supervisor._host.images.figures().images == 1
        clone = await supervisor.start(request(registry, "never", "app:warm"))
        assert await clone.wait_for(RUNNING) is RUNNING
        assert clone.record.boot == "restore"


async def test_a_start_of_what_is_elsewhere_reads_it_once(
    site: Site, registry: SmallRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = await other_host(site, registry)
    monkeypatch.setattr("cache.resident.loader.Loader.load", not_from_the_store)
    async with site.daemon(**second) as supervisor:
        clone = await supervisor.start(request(registry, what="app:warm"))
        assert await clone.wait_for(RUNNING) is RUNNING


async def test_a_pull_alone_takes_no_memory(site: Site, registry: SmallRegistry) -> None:
    second = await other_host(site, registry)
    reference = parse_reference(f"{registry.host}/app:warm")
    async with site.daemon(**second) as supervisor:
        assert (await supervisor.pull(reference, "always")).resident_ms is None
        assert supervisor._host.images.figures().images == 0
        pulled = await supervisor.pull(reference, "missing", resident=True)  # then from the store
        assert (pulled.network_bytes, pulled.resident_bytes) == (0, GUEST_MEMORY)


async def test_without_a_snapshot_nothing_is_resident(site: Site, registry: SmallRegistry, app: Artifact) -> None:
    async with site.daemon() as supervisor:
        pulled = await supervisor.pull(parse_reference(f"{registry.host}/app:1"), "always", resident=True)
        assert pulled.resident_ms is None


async def test_an_event_is_small_however_many_blobs_there_are() -> None:
    hub = EventHub()
    subscription = hub.subscribe()
    telling = TransferEvents(hub, "pull", parse_reference("registry.test/app:1"))
    layers = [Descriptor("x/y", digest_of(str(n).encode()), n) for n in range(1000)]
    telling.begin(SimpleNamespace(digest="", blobs=layers, external_blobs=()))  # type: ignore[arg-type]
    told = (await anext(subscription)).detail
    assert len(msgspec.json.encode(told)) < 20_000
    assert told["size_bytes"] == sum(range(1000))
    subscription.close()


async def test_events_tell_the_story(site: Site, registry: SmallRegistry, app: Artifact) -> None:
    reference = parse_reference(f"{registry.host}/app:1")
    async with site.daemon() as supervisor:
        events = supervisor.events.subscribe()
        pulled = await supervisor.pull(reference, "always")
        told = [await anext(events) for _ in range(2)]
        assert [each.type for each in told] == ["pull.progress", "pull.done"]
        assert told[0].detail["digest"] == told[1].detail["digest"] == app.digest == pulled.digest
        assert {each["title"] for each in told[0].detail["blobs"]} >= {"kernel", "manifest.json"}
        assert told[1].detail["network_bytes"] == pulled.network_bytes == app.kernel.size

        with pytest.raises(ArtifactNotFound):
            await supervisor.pull(parse_reference(f"{registry.host}/app:2"), "always")
        failed = await anext(events)
        assert (failed.type, failed.detail["code"]) == ("pull.failed", "artifact.not_found")
        events.close()


@pytest.mark.parametrize("pinned", [False, True])
async def test_a_kernel_from_another_artifact_and_the_policy(
    site: Site, registry: SmallRegistry, app: Artifact, pinned: bool
) -> None:
    ref = f"{registry.host}/app@{app.digest}" if pinned else f"{registry.host}/app:1"
    document = {"schemaVersion": 1, "mediaType": media_types.MANIFEST, "name": "thin", "version": "1"}
    manifest = msgspec.json.encode({**document, "kernel": {"ref": ref}})
    layer = Descriptor(media_types.MANIFEST, digest_of(manifest), len(manifest))
    oci = ImageManifest(2, media_types.OCI_MANIFEST, EMPTY_DESCRIPTOR, [layer], artifact_type=media_types.MANIFEST)
    registry.add_blob(manifest)
    registry.add_manifest(encode(oci), "thin")
    policy = site.directory / "root" / "etc" / "policy.toml"
    async with site.daemon() as supervisor:
        instance = await supervisor.start(request(registry, what="thin:thin"))
        assert await instance.wait_for(RUNNING) is RUNNING
        policy.parent.mkdir()
        anything = '[{type = "accept"}]'
        policy.write_text(f"version = 1\ndefault = {anything}\n[ramSnapshot]\ndefault = {anything}\n")
        if pinned:
            await supervisor.start(request(registry, what="thin:thin"))
        else:
            with pytest.raises(PolicyRejected, match="by tag"):
                await supervisor.start(request(registry, what="thin:thin"))
