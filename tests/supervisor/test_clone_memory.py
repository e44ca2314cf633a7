"""The memory that clones have to themselves: expected, sampled, and refused before the host runs short."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.available_memory import memory_available_bytes
from ovms_supervisor.config.host import meminfo
from ovms_supervisor.instance import clone_memory
from ovms_supervisor.instance.clone_memory import UNKNOWN_BYTES, CloneMemory, Seat
from ovms_supervisor.supervisor import Supervisor
from spec.digest import digest_of
from spec.errors import CapacityExceeded
from spec.instance import InstanceState
from spec.sizes import GIB, MIB
from tests.supervisor.conftest import Site, start
from tests.supervisor.test_snapshots import release_all

ONE, OTHER = digest_of(b"one"), digest_of(b"other")


def count(*, budget_bytes: int = 1 << 50, available_bytes: int = 1 << 50, reserve_bytes: int = 0) -> CloneMemory:
    return CloneMemory(budget_bytes=budget_bytes, reserve_bytes=reserve_bytes, available_bytes=lambda: available_bytes)


def test_one_more_is_expected_to_come_to_what_the_others_came_to() -> None:
    clones = count()
    assert clones.expected_bytes(ONE) == UNKNOWN_BYTES
    seats = [clones.admit(ONE) for _ in range(3)]
    assert clones.figures().growth_bytes == 3 * UNKNOWN_BYTES
    clones.note(seats[0], 100 * MIB)
    clones.note(seats[1], 50 * MIB)
    clones.note(seats[1], 40 * MIB)
    expected = clones.expected_bytes(ONE)  # of those that were looked at, what they came to at most, and a margin
    assert 75 * MIB < expected < 100 * MIB
    assert clones.expected_bytes(OTHER) == UNKNOWN_BYTES
    figures = clones.figures()
    assert (figures.clones, figures.private_bytes) == (3, 140 * MIB)
    assert figures.growth_bytes == 3 * expected - 140 * MIB
    for seat in seats:
        clones.leave(seat)
        clones.leave(seat)
    assert clones.figures().clones == clones.figures().private_bytes == clones.figures().growth_bytes == 0
    assert 50 * MIB <= clones.expected_bytes(ONE) <= 125 * MIB  # and the next ones are expected to be like them
    clones.note(seats[0], GIB)
    assert clones.figures().private_bytes == 0


def test_the_budget_of_clones() -> None:
    clones = count(budget_bytes=3 * UNKNOWN_BYTES)
    seats = [clones.admit(ONE) for _ in range(3)]
    with pytest.raises(CapacityExceeded, match="budget") as caught:
        clones.admit(OTHER)
    assert caught.value.code == "host.capacity"
    assert "clone_budget" in caught.value.remedy
    assert caught.value.fields == {
        "needed_bytes": UNKNOWN_BYTES,
        "private_bytes": 0,
        "growth_bytes": 3 * UNKNOWN_BYTES,
        "budget_bytes": 3 * UNKNOWN_BYTES,
        "clones": 3,
    }
    clones.leave(seats.pop())
    clones.admit(OTHER)


def test_what_the_host_has_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clone_memory, "_AVAILABLE_FOR_S", 0)
    clones = count(available_bytes=GIB, reserve_bytes=GIB // 2)
    seat = clones.admit(ONE)
    clones.note(seat, 100 * MIB)
    clones.admit(ONE)  # 125 MiB are expected of it, and 25 more of the first
    with pytest.raises(CapacityExceeded, match="can be given away") as caught:
        clones.admit(ONE, promised_bytes=300 * MIB)
    assert caught.value.fields["available_bytes"] == GIB // 2
    assert caught.value.fields["growth_bytes"] == 150 * MIB
    clones.admit(ONE)
    clones.admit(ONE)
    with pytest.raises(CapacityExceeded):
        clones.admit(ONE)


def test_thousands_of_small_clones_are_not_refused_for_what_they_never_take() -> None:
    clones = count(available_bytes=16 * GIB)
    for _ in range(5000):
        clones.note(clones.admit(ONE), 2 * MIB)
    assert clones.figures().growth_bytes < 3 * GIB


def test_a_parked_clone_grows_when_it_is_claimed() -> None:
    clones = count(available_bytes=5 * UNKNOWN_BYTES)
    parked = [clones.admit(ONE, parked=True) for _ in range(15)]
    for seat in parked:
        clones.note(seat, MIB)
    assert clones.figures().growth_bytes == 0
    assert clones.expected_bytes(ONE) == UNKNOWN_BYTES, "they say nothing about those that work"
    for seat in parked[:5]:
        clones.unpark(seat)
        clones.unpark(seat)
    assert clones.figures().growth_bytes == 5 * (UNKNOWN_BYTES - MIB)
    with pytest.raises(CapacityExceeded):
        clones.unpark(parked[5])
    assert parked[5].parked
    for seat in parked:
        clones.leave(seat)
    assert clones.figures() == count(available_bytes=0).figures()


@given(st.lists(st.tuples(st.sampled_from("apunl"), st.integers(0, 5), st.integers(0, 1 << 30)), max_size=60))
def test_sums_are_those_of_the_seats(steps: list[tuple[str, int, int]]) -> None:
    clones, seats = count(), list[Seat]()
    for what, which, size in steps:
        if what == "a":
            seats.append(clones.admit((ONE, OTHER)[which % 2]))
        elif what == "p":
            seats.append(clones.admit((ONE, OTHER)[which % 2], parked=True))
        elif seats and what == "u":
            clones.unpark(seats[which % len(seats)])
        elif seats and what == "n":
            clones.note(seats[which % len(seats)], size)
        elif seats:
            clones.leave(seats.pop(which % len(seats)))
    figures = clones.figures()
    assert (figures.clones, figures.private_bytes) == (len(seats), sum(seat.private_bytes for seat in seats))
    assert figures.growth_bytes >= 0
    for image, kin in clones._images.items():
        of_kin = [seat for seat in seats if seat.image == image and seat.parked]
        assert (kin.parked, kin.parked_bytes) == (len(of_kin), sum(seat.private_bytes for seat in of_kin))
    for image in (ONE, OTHER):
        peaks = [seat.peak_bytes for seat in seats if seat.image == image and seat.peak_bytes]
        assert clones.expected_bytes(image) >= (sum(peaks) // len(peaks) if peaks else 1)


def test_few_images_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clone_memory, "_REMEMBERED_IMAGES", 4)
    clones = count()
    kept = clones.admit(ONE)
    for number in range(20):
        clones.leave(clones.admit(digest_of(str(number).encode())))
    assert len(clones._images) == 4
    clones.note(kept, GIB)
    assert clones.expected_bytes(ONE) > GIB


def test_available_memory_is_the_kernels() -> None:
    assert 0.5 < memory_available_bytes() / meminfo()["MemAvailable"] < 2


async def test_a_clone_too_many_is_refused_and_room_is_made_by_an_end(site: Site) -> None:
    async with site.daemon(clone_budget_bytes=2 * UNKNOWN_BYTES) as supervisor:
        await supervisor.snapshot(await start(supervisor, "guest:plain"), "warm")
        clones = [await start(supervisor, "guest:warm") for _ in range(2)]
        listed = len(supervisor.instances())
        with pytest.raises(CapacityExceeded, match="2 clones"):
            await start(supervisor, "guest:warm")
        assert len(supervisor.instances()) == listed
        assert await site.leaks(supervisor.instances()) == []
        await supervisor.remove(random.choice(clones), force=True)
        assert (await start(supervisor, "guest:warm")).state is InstanceState.RUNNING
        await release_all(site, supervisor)
        assert supervisor.memory.clones().clones == 0


async def test_all_machines_are_looked_at_a_few_at_a_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovms_supervisor.memory_samples._AT_ONCE", (2, 2))
    async with site.daemon() as supervisor:
        await supervisor.snapshot(await start(supervisor, "guest:plain"), "warm")
        for _ in range(4):
            await start(supervisor, "guest:warm")
        looked = []
        for instance in supervisor.instances():
            monkeypatch.setattr(instance, "memory", lambda instance=instance: looked.append(instance.id))
        supervisor.memory._round.clear()
        supervisor.memory.tick()
        assert len(looked) == 2
        supervisor.memory.tick()
        supervisor.memory.tick()
        assert sorted(looked) == sorted(each.id for each in supervisor.instances())


async def test_a_look_that_fails_is_not_the_last_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovms_supervisor.memory_samples._TICK_S", 0.01)
    async with site.daemon() as supervisor:
        await start(supervisor, "guest:plain")
        looks = asyncio.Queue[int]()

        def fail() -> None:
            looks.put_nowait(1)
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(supervisor.memory, "tick", fail)
        async with asyncio.timeout(20):
            for _ in range(3):
                await looks.get()
        assert (await start(supervisor, "guest:plain")).state is InstanceState.RUNNING


async def test_samples_of_real_processes_are_summed(site: Site) -> None:
    async with site.daemon() as supervisor:
        await supervisor.snapshot(await start(supervisor, "guest:plain"), "warm")
        clone = await start(supervisor, "guest:warm")
        supervisor.memory._round.clear()
        supervisor.memory.tick()
        sums = supervisor.memory.sums()
        assert sums.total_bytes == sum(each.record.memory_bytes for each in supervisor.instances())
        assert sums.private_bytes > 0
        assert clone.seat is not None
        assert clone.seat.private_bytes == supervisor.memory.clones().private_bytes > 0
        await supervisor.remove(clone, force=True)
        supervisor.memory._round.clear()
        supervisor.memory.tick()
        assert supervisor.memory.sums().total_bytes < sums.total_bytes
        assert supervisor.memory.clones().clones == 0


async def test_a_clone_that_is_taken_over_is_counted(site: Site) -> None:
    async with site.daemon(on_exit="leave") as supervisor:
        await supervisor.snapshot(await start(supervisor, "guest:plain"), "warm")
        await start(supervisor, "guest:warm", name="clone")
        before = supervisor.memory.clones().clones
    async with site.daemon() as supervisor:
        assert supervisor.memory.clones().clones >= before == 1
        await asyncio.sleep(0)
        await remove_all(supervisor)
        assert supervisor.memory.clones().clones == 0


async def remove_all(supervisor: Supervisor) -> None:
    for instance in supervisor.instances():
        await supervisor.remove(instance, force=True)
