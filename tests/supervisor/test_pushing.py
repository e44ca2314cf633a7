"""Pushes of a daemon, and snapshots that are pushed: what they tell, and what stays when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from cache.artifact import Artifact
from cache.store import Store
from ovms_supervisor.events import Subscription
from ovms_supervisor.supervisor import Supervisor
from spec.api import Event, Overrides, StartRequest
from spec.digest import Digest
from spec.errors import ArtifactNotFound, AuthenticationFailed, InvalidReference
from spec.instance import InstanceState
from spec.reference import parse_reference
from tests.cache.registry.small_registry import serving
from tests.cache.registry.upload_registry import UploadRegistry
from tests.supervisor.conftest import Site, start


@pytest.fixture(autouse=True)
def no_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
async def registry() -> AsyncIterator[UploadRegistry]:
    async with serving(UploadRegistry()) as registry:
        yield registry


def look(site: Site, digest: str) -> Artifact:
    store = Store(site.directory / "root")
    return store.artifact(Digest(digest))


async def told(events: Subscription, kind: str) -> list[Event]:
    """The events of pushes, up to one of that kind."""
    found = []
    async with asyncio.timeout(30):
        async for event in events:
            if event.type.startswith("push."):
                found.append(event)
            if event.type == kind:
                break
    return found


async def test_a_push_and_what_it_tells(site: Site, registry: UploadRegistry) -> None:
    async with site.daemon() as supervisor:
        events = supervisor.events.subscribe()
        target = parse_reference(f"{registry.host}/team/app:1")
        pushed = await supervisor.push(parse_reference("guest:plain"), target)
        assert registry.tags["team/app", "1"] == pushed.digest
        first, *_, last = await told(events, "push.done")
        assert (first.type, first.detail["reference"], first.detail["digest"]) == (
            "push.progress",
            str(target),
            pushed.digest,
        )
        assert first.detail["size_bytes"] == sum(each["size_bytes"] for each in first.detail["blobs"])
        assert {each["state"] for each in first.detail["blobs"]} == {"waiting"}
        assert last.detail["sent_bytes"] == pushed.sent_bytes > 0
        assert last.detail["digest"] == pushed.digest

        with pytest.raises(ArtifactNotFound):
            await supervisor.push(parse_reference("guest:missing"), target)
        (failed,) = await told(events, "push.failed")
        assert (failed.detail["code"], failed.detail["reference"]) == ("artifact.not_found", str(target))


async def test_a_snapshot_under_a_name_with_a_registry_is_pushed(site: Site, registry: UploadRegistry) -> None:
    async with site.daemon() as supervisor:
        base = await supervisor.push(parse_reference("guest:disk"), parse_reference(f"{registry.host}/team/base:1"))
        instance = await start(supervisor, "guest:disk")
        reference = f"{registry.host}/team/app:warm"
        reply = await supervisor.snapshot(instance, reference)
        assert reply.pushed is not None
        assert reply.reference == reference
        assert registry.tags["team/app", "warm"] == reply.snapshot_ref
        made = await asyncio.to_thread(look, site, reply.snapshot_ref)
        assert made.ramsnap is not None
        assert made.ramsnap.digest in registry.owned["team/app"]
        assert reply.pushed.mounted_bytes, "kernel and disk come from the other repository"
        assert reply.pushed.subject == "pushed", "the base is in another repository"
        assert registry.tags["team/app", base.digest] == base.digest
        assert instance.state is InstanceState.RUNNING


@pytest.mark.parametrize("push", [None, False, True])
async def test_a_bare_tag_is_pushed_only_if_that_is_said(
    site: Site, registry: UploadRegistry, push: bool | None
) -> None:
    """It is the user who sends the memory of a machine away, not the name that the machine was started from."""
    async with site.daemon() as supervisor:
        await supervisor.push(parse_reference("guest:plain"), parse_reference(f"{registry.host}/team/app:1"))
        request = StartRequest(manifest=f"{registry.host}/team/app:1", overrides=Overrides())
        instance = await supervisor.start(request)
        await instance.wait_for(InstanceState.RUNNING)
        reply = await supervisor.snapshot(instance, "warm", push=push)
        assert reply.reference == f"{registry.host}/team/app:warm"
        assert (reply.pushed is not None) == (("team/app", "warm") in registry.tags) == bool(push)


async def test_what_can_not_be_pushed_is_not_taken(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:plain")
        with pytest.raises(InvalidReference):
            await supervisor.snapshot(instance, "guest:warm", push=True)
        with pytest.raises(ArtifactNotFound):
            await _resolved(site, "guest:warm")
        await supervisor.snapshot(instance, "registry.invalid/app:warm", push=False)


async def test_a_snapshot_that_could_not_be_pushed_is_here(site: Site, registry: UploadRegistry) -> None:
    registry.wicked = lambda request: web.Response(status=403) if request.method == "POST" else None
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:plain")
        reference = f"{registry.host}/team/app:warm"
        with pytest.raises(AuthenticationFailed) as caught:
            await supervisor.snapshot(instance, reference)
        digest = await _resolved(site, reference)
        assert f"the snapshot is here as {reference} ({digest})" in caught.value.detail
        assert f"ovm push {reference}" in caught.value.remedy
        assert caught.value.fields["snapshot_ref"] == digest

        registry.wicked = lambda _: None
        assert (await _pushed(supervisor, reference)) == digest
        await supervisor.snapshot(instance, "again")


async def _pushed(supervisor: Supervisor, reference: str) -> Digest:
    return (await supervisor.push(parse_reference(reference), parse_reference(reference))).digest


async def _resolved(site: Site, reference: str) -> Digest:
    return await asyncio.to_thread(Store(site.directory / "root").resolve, parse_reference(reference))
