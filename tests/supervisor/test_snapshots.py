"""Snapshots: of owned and of private RAM, with disks and devices, and given up at every step."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cache.index_file import ListedArtifact
from cache.ramsnap import read_header
from ovms_supervisor.instance import Instance
from ovms_supervisor.instance.disks import read_record
from ovms_supervisor.instance.overlay_copy import copy_overlay
from ovms_supervisor.supervisor import Supervisor
from spec.api import MmioWrite
from spec.digest import parse_digest
from spec.errors import Busy, ImmutableOverride, InUse, InvalidReference, NoSpace, OvmsError, WrongState
from spec.instance import InstanceState
from spec.qcow2 import build_overlay_header, parse_header
from spec.reference import parse_reference
from tests.cache.conftest import run
from tests.supervisor.conftest import Site, ended, start
from tests.supervisor.fake_vmm import FEATURES

RUNNING, PAUSED = InstanceState.RUNNING, InstanceState.PAUSED
STOPPED, FAILED = InstanceState.STOPPED, InstanceState.FAILED


def nonce(site: Site, instance: Instance) -> str:
    return site.vm(instance).guest.nonce


async def listed(supervisor: Supervisor) -> list[ListedArtifact]:
    return await asyncio.to_thread(supervisor._host.store.list)


async def release_all(site: Site, supervisor: Supervisor) -> None:
    """End everything and count what is left."""
    for instance in supervisor.instances():
        await supervisor.remove(instance, force=True)
    assert await site.leaks([]) == []
    assert supervisor._host.capacity.promised_bytes == 0
    shelf = supervisor._host.images._shelf
    assert all(not entry.references for entry in shelf.entries.values())


@pytest.mark.parametrize("manifest", ["guest:plain", "guest:disk"])
async def test_an_instance_goes_on_as_a_clone_of_its_snapshot(site: Site, manifest: str) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, manifest)
        before = site.vm(instance)
        reply = await supervisor.snapshot(instance, "warm")
        after = site.vm(instance)
        assert reply.reference == "guest:warm"
        assert reply.pause_ms > 0
        assert list(reply.phases) == ["prepare", "pause", "save", "restore", "retire", "encode", "store", "adopt"]
        assert before.process.exited is not None
        assert after.machine.ram.private
        assert (after.guest.nonce, after.guest.going, instance.state) == (before.guest.nonce, True, RUNNING)
        assert instance.record.lineage == reply.snapshot_ref
        assert instance.record.pending_layers == []
        clones = [await start(supervisor, "guest:warm") for _ in range(3)]
        assert {nonce(site, clone) for clone in clones} == {nonce(site, instance)}
        assert {site.vm(clone).machine.ram.path for clone in clones} == {instance.image.ram if instance.image else None}
        assert [clone.record.boot for clone in clones] == ["restore"] * 3
        await release_all(site, supervisor)


async def test_snapshots_of_snapshots(site: Site) -> None:
    """In place for a machine whose RAM is private already; each adds its overlay as a layer, and its changed pages."""
    async with site.daemon() as supervisor:
        first = await start(supervisor, "guest:disk")
        await supervisor.snapshot(first, "one")
        pid = site.vm(first).pid
        reply = await supervisor.snapshot(first, "two")
        assert site.vm(first).pid == pid
        assert list(reply.phases) == ["prepare", "pause", "save", "resume", "encode", "store"]
        clone = await start(supervisor, "guest:two")
        await supervisor.snapshot(clone, "other:three")
        clone = await start(supervisor, "other:three")
        assert nonce(site, clone) == nonce(site, first)
        store = supervisor._host.store
        artifacts = {
            each.name: await asyncio.to_thread(store.artifact, each.digest) for each in await listed(supervisor)
        }
        assert {name: (len(each.disk_layers), len(each.ramsnap_parents)) for name, each in artifacts.items()} == {
            "guest:plain": (0, 0),
            "guest:shm": (0, 0),
            "guest:disk": (1, 0),
            "guest:one": (2, 0),
            "guest:two": (3, 1),
            "other:three": (4, 2),
        }
        ramsnap = artifacts["other:three"].ramsnap
        assert ramsnap is not None
        header = await asyncio.to_thread(read_header, store.blob_path(ramsnap.content_digest))
        two = artifacts["guest:two"].ramsnap
        assert header.parent == (two and two.digest)
        await release_all(site, supervisor)


async def test_a_clone_that_changed_most_of_its_ram_is_stored_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovms_supervisor.instance.layering._MOST_OF_IT", 0)
    async with site.daemon() as supervisor:
        first = await start(supervisor, "guest:disk")
        await supervisor.snapshot(first, "one")
        reply = await supervisor.snapshot(first, "two")
        assert list(reply.phases) == ["prepare", "pause", "save", "resume", "complete", "encode", "store", "adopt"]
        store = supervisor._host.store
        digest = await asyncio.to_thread(store.resolve, parse_reference("guest:two"))
        assert (await asyncio.to_thread(store.artifact, digest)).ramsnap_parents == ()
        assert nonce(site, await start(supervisor, "guest:two")) == nonce(site, first)
        await release_all(site, supervisor)


async def test_a_clone_whose_snapshot_has_left_the_store_is_stored_whole(site: Site) -> None:
    async with site.daemon() as supervisor:
        first = await start(supervisor, "guest:plain")
        await supervisor.snapshot(first, "one")
        store, image = supervisor._host.store, first.image
        assert image is not None
        await asyncio.to_thread(store.blob_path(image.digest).unlink)
        assert "complete" in (await supervisor.snapshot(first, "two")).phases
        assert nonce(site, await start(supervisor, "guest:two")) == nonce(site, first)
        await release_all(site, supervisor)


async def test_a_driver_that_cannot_capture_a_clone_in_place(site: Site) -> None:
    site.fake.features = FEATURES - {"snapshot-in-place"}
    site.fake.saves_in_place = False
    async with site.daemon() as supervisor:
        await supervisor.snapshot(await start(supervisor, "guest:disk"), "one")
        clone = await start(supervisor, "guest:one")
        before = site.vm(clone)
        reply = await supervisor.snapshot(clone, "two")
        assert list(reply.phases) == [
            "prepare",
            "prepare.copy",
            "pause",
            "save",
            "restore",
            "retire",
            "encode",
            "store",
            "adopt",
        ]
        assert before.process.exited is not None
        assert nonce(site, clone) == before.guest.nonce
        await release_all(site, supervisor)


@pytest.mark.real
async def test_a_machine_that_goes_on_on_the_same_disk(site: Site) -> None:
    """Each snapshot has the disk as it was; none is below the machine, so all are layers on the same base."""
    site.fake.features = FEATURES - {"snapshot-in-place"} | {"snapshot-in-place-same-disk"}
    async with site.daemon() as supervisor:
        await supervisor.snapshot(await start(supervisor, "guest:disk"), "one")
        clone = await start(supervisor, "guest:one")
        (disk,), lineage = site.vm(clone).machine.disks, clone.record.lineage
        pid = site.vm(clone).pid
        for number, tag in enumerate(("two", "three")):
            await asyncio.to_thread(run, "qemu-io", "-c", f"write -q -P {17 + number} {8 * number}k 4k", disk.path)
            reply = await supervisor.snapshot(clone, tag)
            assert list(reply.phases) == ["prepare", "pause", "save", "resume", "encode", "store"]
        assert (site.vm(clone).pid, site.vm(clone).machine.disks) == (pid, (disk,))
        assert (clone.record.lineage, clone.record.pending_layers) == (lineage, [])
        for tag, second in (("two", 0), ("three", 18)):
            later = await start(supervisor, f"guest:{tag}")
            (own,) = site.vm(later).machine.disks
            checks = ["-c", "read -q -P 17 0 4k", "-c", f"read -q -P {second} 8k 4k"]
            assert "failed" not in await asyncio.to_thread(run, "qemu-io", "-r", *checks, own.path)
            artifact = await asyncio.to_thread(supervisor._host.store.artifact, parse_digest(later.record.lineage))
            assert len(artifact.disk_layers) == 3
        await release_all(site, supervisor)


async def test_an_overlay_that_is_too_large_to_be_copied(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovms_supervisor.instance.overlay_copy.MOST_BYTES", 0)
    monkeypatch.setattr("ovms_supervisor.instance.overlay_copy._share_blocks", lambda *_: False)
    site.fake.features = FEATURES - {"snapshot-in-place"} | {"snapshot-in-place-same-disk"}
    site.fake.saves_in_place = False
    async with site.daemon() as supervisor:
        await supervisor.snapshot(await start(supervisor, "guest:disk"), "one")
        clone = await start(supervisor, "guest:one")
        assert "restore" in (await supervisor.snapshot(clone, "two")).phases
        assert await site.leaks(supervisor.instances()) == []
        await release_all(site, supervisor)


def test_a_copy_of_an_overlay_is_marked_as_closed(tmp_path: Path) -> None:
    overlay, copy = tmp_path / "overlay", tmp_path / "copy"
    header = bytearray(build_overlay_header("base", "raw", 1 << 20))
    header[79] |= 1
    overlay.write_bytes(header)
    copy_overlay(overlay, copy)
    assert parse_header(overlay.read_bytes()).dirty
    assert not parse_header(copy.read_bytes()).dirty
    header[79] &= 0xFE
    assert copy.read_bytes() == header


async def test_a_paused_machine_stays_paused(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        await supervisor.pause(instance)
        for tag in ("one", "two"):
            await supervisor.snapshot(instance, tag)
            assert (instance.state, site.vm(instance).guest.going) == (PAUSED, False)
        await supervisor.resume(instance)
        clone = await start(supervisor, "guest:two")
        assert site.vm(clone).guest.going


STEPS = ["spawn", "pause", "save", "restore", "complete", "resume"]


@pytest.mark.parametrize("how", ["refuse", "die"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("of", ["original", "clone"])
async def test_a_snapshot_that_fails_leaves_nothing(site: Site, of: str, step: str, how: str) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:disk")
        if of == "clone":
            await supervisor.snapshot(instance, "one")
            await supervisor.remove(instance, force=True)
            instance = await start(supervisor, "guest:one")
        pid = site.vm(instance).pid
        site.fake.faults[step] = how
        try:
            await supervisor.snapshot(instance, "two")
        except OvmsError:
            assert "guest:two" not in {each.name for each in await asyncio.to_thread(supervisor._host.store.list)}
        else:
            assert site.fake.faults or how == "die"  # a step that this way does not have
        site.fake.faults.clear()
        if instance.state is PAUSED:  # it did not go on, and is not given up for that
            assert (step, how) == ("resume", "refuse")
            await supervisor.resume(instance)
        if instance.state is RUNNING and site.vm(instance).process.exited is None:
            assert site.vm(instance).guest.going
            assert await site.leaks(supervisor.instances()) == []
            await supervisor.snapshot(instance, "three")  # nothing stands in the way of the next one
            assert nonce(site, await start(supervisor, "guest:three")) == nonce(site, instance)
        else:
            assert await ended(instance) is FAILED
            assert pid not in await asyncio.to_thread(site.processes)
        await release_all(site, supervisor)


async def test_a_snapshot_that_cannot_be_stored(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has gone on over a frozen overlay: the next snapshot has both as layers."""
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:disk")

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("ovms_supervisor.instance.storing.encode", full)
            with pytest.raises(NoSpace, match="No space"):
                await supervisor.snapshot(instance, "one")
        assert (instance.state, site.vm(instance).guest.going) == (RUNNING, True)
        assert len(instance.record.pending_layers) == 1
        assert await site.leaks(supervisor.instances()) == []
        await supervisor.snapshot(instance, "two")
        store = supervisor._host.store
        digest = await asyncio.to_thread(store.resolve, parse_reference("guest:two"))
        assert len((await asyncio.to_thread(store.artifact, digest)).disk_layers) == 3
        assert instance.record.pending_layers == []
        assert nonce(site, await start(supervisor, "guest:two")) == nonce(site, instance)
        await release_all(site, supervisor)


async def test_a_snapshot_that_does_not_stay_resident(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:disk")

        async def full(*_: object) -> None:
            raise NoSpace("the tmpfs is full")

        with monkeypatch.context() as patch:
            patch.setattr(supervisor._host.images, "adopt", full)
            await supervisor.snapshot(instance, "one")
        assert await site.leaks(supervisor.instances()) == []
        assert nonce(site, await start(supervisor, "guest:one")) == nonce(site, instance)
        await supervisor.snapshot(instance, "two")
        await release_all(site, supervisor)


async def test_what_a_snapshot_is_made_of_is_kept_whatever_becomes_of_its_name(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:disk")
        await supervisor.snapshot(instance, "one")
        store = supervisor._host.store
        for name in ("guest:one", "guest:disk"):
            await asyncio.to_thread(store.untag, name)
        await asyncio.to_thread(store.remove_unreferenced)
        await supervisor.snapshot(instance, "two")
        assert nonce(site, await start(supervisor, "guest:two")) == nonce(site, instance)
        await release_all(site, supervisor)


async def test_a_stop_during_a_snapshot(site: Site) -> None:
    async with site.daemon() as supervisor:
        for step in ("spawn", "pause", "save", "restore"):
            instance = await start(supervisor, "guest:disk")
            site.fake.hanging.clear()
            site.fake.faults[step] = "hang"
            taking = asyncio.create_task(supervisor.snapshot(instance, "one"))
            await site.fake.hanging.wait()
            await supervisor.stop(instance, None)
            assert await ended(instance) is STOPPED
            with pytest.raises(WrongState):
                await taking
            await release_all(site, supervisor)


async def test_a_caller_that_goes_away_gets_its_snapshot(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        site.fake.faults["save"] = "hang"
        events = supervisor.events.subscribe()
        caller = asyncio.create_task(supervisor.snapshot(instance, "one"))
        await site.fake.hanging.wait()
        caller.cancel()
        site.fake.released.set()
        told = [await anext(events) for _ in range(3)]
        assert [event.type for event in told] == ["snapshot.captured", "snapshot.progress", "snapshot.created"]
        assert {event.detail["reference"] for event in told} == {"guest:one"}
        assert told[0].detail["pause_ms"] == told[2].detail["pause_ms"] > 0
        assert 0 <= told[1].detail["done_bytes"] <= told[1].detail["of_bytes"] == instance.record.memory_bytes


async def test_one_snapshot_at_a_time(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        site.fake.faults["save"] = "hang"
        taking = asyncio.create_task(supervisor.snapshot(instance, "one"))
        await site.fake.hanging.wait()
        with pytest.raises(Busy):
            await supervisor.snapshot(instance, "two")
        site.fake.released.set()
        await taking
        await supervisor.snapshot(instance, "two")


async def test_names_of_snapshots(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor)
        for tag in ("not a tag", "x@sha256:" + "0" * 64, "UPPER/case:1"):
            with pytest.raises(InvalidReference):
                await supervisor.snapshot(instance, tag)
        reply = await supervisor.snapshot(instance, "localhost:5000/some/thing:1", push=False)
        clone = await start(supervisor, reply.snapshot_ref)
        assert (await supervisor.snapshot(clone, "again")).reference == "localhost:5000/some/thing:again"


async def test_shared_memory_is_part_of_the_moment(site: Site) -> None:
    async with site.daemon() as supervisor:
        instance = await start(supervisor, "guest:shm")
        await supervisor.inject(instance, [MmioWrite(device="mmio0", offset=40_000, data=b"then")])
        await supervisor.snapshot(instance, "warm")
        read = MmioWrite(device="mmio0", offset=40_000, read=4)
        await supervisor.inject(instance, [MmioWrite(device="mmio0", offset=40_000, data=b"late")])
        clones = [await start(supervisor, "guest:warm") for _ in range(2)]
        await supervisor.inject(clones[0], [MmioWrite(device="mmio0", offset=40_000, data=b"mine")])
        assert [await supervisor.inject(each, [read]) for each in (instance, *clones)] == [
            [b"late"],
            [b"mine"],
            [b"then"],
        ]
        await release_all(site, supervisor)


async def test_persistent_disk(site: Site) -> None:
    async with site.daemon() as supervisor:
        directory = supervisor._host.layout.persistent_disk("web")

        async def again(manifest: str = "guest:disk", boot: str | None = None) -> Instance:
            instance = await start(supervisor, manifest, name="web", disk="persistent", boot=boot)
            if instance.state is FAILED:
                await supervisor.remove(instance, force=False)
            return instance

        first = await again()
        (disk,) = site.vm(first).machine.disks
        assert disk.path == directory / "disk-0.qcow2"
        await supervisor.snapshot(first, "warm")
        await supervisor.remove(first, force=True)
        record = await asyncio.to_thread(read_record, directory)
        assert record.overlays == ["disk-0.qcow2", "disk-0.1.qcow2"]
        second = await again()
        assert site.vm(second).machine.disks[0].path == directory / "disk-0.1.qcow2"
        await supervisor.remove(second, force=True)
        refused = await again("guest:warm")
        assert isinstance(refused.error, ImmutableOverride)
        refused = await again("guest:warm", boot="cold")
        assert isinstance(refused.error, InUse)
        fresh = await start(supervisor, "guest:warm", name="other", disk="persistent")
        assert fresh.state is RUNNING
        await release_all(site, supervisor)
