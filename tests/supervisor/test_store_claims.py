"""What machines and persistent disks need of the store is kept, whether or not a daemon runs."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from cache.store import Store
from ovms_supervisor.layout import Layout
from spec.errors import ArtifactNotFound, CorruptStore
from spec.instance import InstanceState
from tests.supervisor.conftest import Site, ended, start
from tests.supervisor.test_adoption import leaving, only
from tests.supervisor.test_snapshots import release_all


def forget_names_and_collect(site: Site) -> set[str]:
    """What another process does that removes all names and then everything that nobody needs; what was removed."""
    store = Store(site.directory / "root")
    store.create()
    for listed in store.list():
        if any(each.digest == listed.digest for each in store.list()):
            store.unlist(listed.digest)
    return {each.what for each in store.remove_unreferenced()}


async def test_a_machine_keeps_its_artifacts_while_no_daemon_runs(site: Site) -> None:
    async with leaving(site) as supervisor:
        await start(supervisor, "guest:disk", name="a")
        await supervisor.snapshot(supervisor.find("a"), "one")
    removed = await asyncio.to_thread(forget_names_and_collect, site)
    assert removed, "other artifacts went"
    assert await asyncio.to_thread(forget_names_and_collect, site) == set()
    async with leaving(site) as supervisor:
        machine = only(supervisor)
        assert machine.record.degraded == []
        await supervisor.snapshot(machine, "two")
        await start(supervisor, "guest:two", name="b")
        await release_all(site, supervisor)
    left = await asyncio.to_thread(forget_names_and_collect, site)
    assert len(left) > 5, "with the machines gone, so are their artifacts"
    assert not list((site.directory / "root" / "blobs" / "sha256").iterdir())
    assert not list((site.directory / "root" / "ovms.blobs" / "disks").iterdir())


async def test_a_machine_that_has_stopped_keeps_its_artifact_until_it_is_removed(site: Site) -> None:
    async with leaving(site) as supervisor:
        machine = await start(supervisor, "guest:disk")
        await supervisor.stop(machine, 0)
        assert await ended(machine) is InstanceState.STOPPED
    async with leaving(site) as supervisor:
        digest = only(supervisor).record.manifest.digest
        assert digest not in await asyncio.to_thread(forget_names_and_collect, site)
        await supervisor.remove(only(supervisor), force=False)
        assert digest in await asyncio.to_thread(forget_names_and_collect, site)


async def test_a_persistent_disk_keeps_its_layers_until_its_directory_is_gone(site: Site) -> None:
    layout = Layout.of(site.settings())
    async with leaving(site) as supervisor:
        machine = await start(supervisor, "guest:disk", name="db", disk="persistent")
        await supervisor.remove(machine, force=True)
        await asyncio.to_thread(forget_names_and_collect, site)
        digest = machine.record.manifest.digest
    disks = site.directory / "root" / "ovms.blobs" / "disks"
    assert len(list(disks.iterdir())) == 1
    shutil.rmtree(layout.persistent_disk("db"))
    assert digest in await asyncio.to_thread(forget_names_and_collect, site)
    assert not list(disks.iterdir())


async def test_a_start_that_is_refused_claims_nothing(site: Site) -> None:
    async with leaving(site) as supervisor:
        with pytest.raises(ArtifactNotFound):
            await start(supervisor, "guest:nowhere")
        assert await site.leaks(supervisor.instances()) == []
    assert not list((site.directory / "root" / "ovms.blobs" / "claims").iterdir())


async def test_a_claim_that_cannot_be_read_stops_the_collection(site: Site) -> None:
    claim = site.directory / "root" / "ovms.blobs" / "claims" / "instance-x.json"
    claim.write_text("{")
    with pytest.raises(CorruptStore) as caught:
        await asyncio.to_thread(forget_names_and_collect, site)
    assert str(claim) in caught.value.detail
    claim.write_bytes(b"")  # what a power cut makes of a claim of a machine, which it has ended too
    assert await asyncio.to_thread(forget_names_and_collect, site)
    assert not claim.exists()


async def test_what_was_claimed_for_a_machine_that_never_came_to_be(site: Site) -> None:
    """Daemons that died between a claim and the first record, and between the removal of a directory and its claim."""
    store, layout = Store(site.directory / "root"), Layout.of(site.settings())
    await asyncio.to_thread(store.create)
    digest = (await asyncio.to_thread(store.list))[0].digest
    unborn, removed = (layout.of_instance(name).directory for name in ("unborn", "removed"))
    unborn.mkdir(parents=True)
    for directory in (unborn, removed):
        await asyncio.to_thread(store.claim, f"instance-{directory.name}", directory, [digest])
    async with site.daemon():
        assert await site.leaks([]) == []
