"""Journals of earlier daemons, kept as they were written, are read by today's; add to them, and never change them."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from ovms_supervisor.instance import journal
from ovms_supervisor.instance.record import Record, decode, encode
from ovms_supervisor.layout import Layout
from spec.instance import InstanceState
from tests.supervisor.conftest import Site, ended

SAMPLES = Path(__file__).parent / "journals"
NAMES = sorted(each.stem for each in SAMPLES.iterdir())


def sample(name: str) -> Record:
    return journal.read(SAMPLES / f"{name}.json")


@pytest.mark.parametrize("name", NAMES)
def test_they_are_read_and_written_again(name: str) -> None:
    record = sample(name)
    assert record.version == 1
    assert decode(encode(record)) == record


def test_a_cold_machine() -> None:
    record = sample("cold")
    assert (record.state, record.boot, record.name) == (InstanceState.RUNNING, "cold", "cold")
    assert record.vm is not None
    assert record.vm.machine.ram.path.name == "ram"
    assert [each.name for each in record.vm.machine.devices] == ["mmio0"]
    assert all(each.holds for each in record.isolation)


def test_a_machine_that_has_gone_on_from_its_snapshot() -> None:
    record = sample("gone_on_from_its_snapshot")
    assert record.boot == "cold"
    assert record.vm is not None
    assert record.vm.machine.ram.private
    assert (record.vm.machine.ram.path.name, record.vm.generation, record.generation) == ("ram-1", 1, 1)
    assert record.doing is None


def test_clones() -> None:
    clone, parked, paused = sample("clone"), sample("parked"), sample("paused")
    for record in (clone, parked, paused):
        assert record.boot == "restore"
        assert record.image is not None
        assert record.vm is not None
        assert record.vm.machine.ram.private
    assert (clone.pool, parked.pool) == (None, "guest:warm")
    assert (parked.state, parked.name) == (InstanceState.PARKED, None)
    assert paused.state is InstanceState.PAUSED


def test_a_snapshot_half_done() -> None:
    record = sample("snapshot_half_done")
    assert record.vm is not None
    assert record.doing is not None
    assert record.doing.what == "snapshot"
    assert record.doing.overlay is not None
    assert record.doing.successor is not None
    assert record.doing.successor.pid != record.vm.pid
    assert record.doing.successor.generation == record.generation == 1
    assert [each.path for each in record.doing.successor.machine.disks] == [record.doing.overlay]


def test_one_that_has_ended() -> None:
    record = sample("ended")
    assert record.state is InstanceState.STOPPED
    assert record.exit is not None
    assert "stopped on request" in record.exit.reason


@pytest.fixture
def left_by_them(site: Site) -> Site:
    layout = Layout.of(site.settings())
    for name in NAMES:
        directory = layout.of_instance(sample(name).instance_id).directory
        directory.mkdir(parents=True)
        shutil.copy(SAMPLES / f"{name}.json", directory / "journal.json")
    return site


async def test_their_machines_ended_with_that_host(left_by_them: Site) -> None:
    """They name pids and files of another boot, which are nobody's business now; parked ones nobody has known."""
    site = left_by_them
    async with site.daemon() as supervisor:
        async with asyncio.timeout(30):
            while any(each.record.pool for each in supervisor.instances()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await site.leaks(supervisor.instances()) == []
        found = {each.name: each for each in supervisor.instances()}
        assert sorted(map(str, found)) == ["clone", "cold", "ended", "paused", "subject", "web"]
        assert await ended(found["ended"]) is InstanceState.STOPPED
        for name in ("clone", "cold", "paused", "subject", "web"):
            assert await ended(found[name]) is InstanceState.FAILED
            exit_info = found[name].record.exit
            assert exit_info is not None
            assert exit_info.reason == "the host was rebooted"
            await supervisor.remove(found[name], force=False)
