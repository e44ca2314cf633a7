"""Parked clones: ordered, claimed, replaced, given up, and what becomes of them when daemons come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ovms_supervisor.config.settings import KeptWarm
from ovms_supervisor.instance import Instance, journal
from ovms_supervisor.instance.capacity import Reservation
from ovms_supervisor.instance.clone_memory import UNKNOWN_BYTES
from ovms_supervisor.instance.record import Doing
from ovms_supervisor.supervisor import Supervisor
from spec.api import StartRequest, WarmPool, WarmRequest
from spec.errors import (
    ArtifactNotFound,
    CapacityExceeded,
    InstanceNotFound,
    InvalidReference,
    InvalidRequest,
    NotFound,
    WrongState,
)
from spec.instance import InstanceState
from spec.sizes import MIB
from tests.supervisor.conftest import GUEST_MEMORY, Site, start
from tests.supervisor.test_adoption import edit, kill, leaving

RUNNING, PARKED, FAILED = InstanceState.RUNNING, InstanceState.PARKED, InstanceState.FAILED


async def warm_artifact(supervisor: Supervisor) -> None:
    """guest:warm, with a RAM snapshot, a disk and no machine that runs."""
    instance = await start(supervisor, "guest:disk")
    await supervisor.snapshot(instance, "warm")
    await supervisor.remove(instance, force=True)


async def parked(supervisor: Supervisor, count: int, **limits: Any) -> WarmPool:
    await supervisor.order_parked(WarmRequest(manifest="guest:warm", count=count, **limits))
    return await settled(supervisor)


async def settled(supervisor: Supervisor) -> WarmPool:
    async with asyncio.timeout(20):
        return await supervisor.pool.settled("guest:warm")


def clones(supervisor: Supervisor) -> list[Instance]:
    return [each for each in supervisor.instances() if each.state is PARKED]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what a user sees, however it comes about
            await asyncio.sleep(0.01)


async def until_gone(supervisor: Supervisor, *, left: int = 0) -> None:
    await until(lambda: len(supervisor.instances()) <= left)


async def test_a_start_claims_a_parked_clone(site: Site) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        pool = await parked(supervisor, 2)
        assert (pool.parked, pool.wanted, pool.trouble) == (2, 2, None)
        known = {each.id for each in clones(supervisor)}
        assert all(not site.vm(each).guest.going for each in clones(supervisor))
        reached = len(site.fake.calls)
        seen = supervisor.events.subscribe()
        instance = await start(supervisor, "guest:warm", name="web", cpus=1, memory="32M", runtime="qemu")
        assert site.fake.calls[reached : reached + 1] == ["resume"]
        assert instance.id in known
        assert supervisor.find("web") is instance
        assert site.vm(instance).guest.going
        info = await instance.info()
        assert (info.status, info.name, info.manifest.ref) == (RUNNING, "web", "guest:warm")
        assert info.metrics.start is not None
        assert (info.metrics.start.path, info.metrics.start.not_claimed) == ("claimed", None)
        assert list(info.metrics.start.phases) == ["journal", "resume"]
        assert info.started_at == info.created_at
        told = [await anext(aiter(seen)) for _ in range(2)]
        assert [(each.type, each.name) for each in told] == [("instance.starting", "web"), ("instance.running", "web")]
        pool = await settled(supervisor)
        assert (pool.parked, pool.hits, pool.misses) == (2, 1, 0)
        await supervisor.pause(instance)
        await supervisor.resume(instance)
        await supervisor.stop(instance, None)
        await supervisor.dissolve_parked("guest:warm")
        await until_gone(supervisor, left=1)
        assert await site.leaks(supervisor.instances()) == []


async def test_one_write_to_the_journal_before_the_resume(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 1)
        (clone,) = clones(supervisor)
        done: list[str] = []
        write, resume = clone.journal.write, site.vm(clone).resume

        async def written(record: object) -> None:
            done.append("journal")
            await write(record)  # type: ignore[arg-type]

        async def resumed() -> None:
            done.append(f"resume of {(await asyncio.to_thread(journal.read, clone.paths.journal)).state}")
            await resume()

        monkeypatch.setattr(clone.journal, "write", written)
        monkeypatch.setattr(site.vm(clone), "resume", resumed)
        await start(supervisor, "guest:warm")
        assert done == ["journal", "resume of running"]
        # Later, when there is time, the times of the start get there too.
        async with asyncio.timeout(20):
            while (await asyncio.to_thread(journal.read, clone.paths.journal)).start is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"boot": "cold"}, "a cold boot was asked for"),
        ({"disk": "persistent", "name": "kept"}, "a persistent disk was asked for"),
    ],
)
async def test_what_a_clone_cannot_serve_starts_as_ever(site: Site, overrides: dict[str, Any], why: str) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 1)
        instance = await start(supervisor, "guest:warm", **overrides)
        assert instance.record.start is not None
        assert (instance.record.start.path, instance.record.start.not_claimed) == (
            "booted" if "boot" in overrides else "restored",
            why,
        )
        pool = await settled(supervisor)
        assert (pool.parked, pool.hits, pool.misses) == (1, 0, 1)


async def test_more_starts_than_clones(site: Site) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 3)
        machines = await asyncio.gather(*(start(supervisor, "guest:warm", name=f"m{i}") for i in range(5)))
        assert {each.state for each in machines} == {RUNNING}
        assert len({each.id for each in machines}) == 5
        paths = sorted(str(each.record.start and each.record.start.path) for each in machines)
        assert paths == ["claimed"] * 3 + ["restored"] * 2
        assert (await settled(supervisor)).parked == 3
        plain = await start(supervisor, "guest:plain")
        assert plain.record.start is not None
        assert (plain.record.start.path, plain.record.start.not_claimed) == ("booted", None)


async def test_what_cannot_be_kept_parked(site: Site) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        for manifest, count, error in (
            ("guest:nothing", 1, ArtifactNotFound),
            ("guest:plain", 1, InvalidRequest),
            (str(site.directory), 1, InvalidReference),
            ("guest:nothing", 0, NotFound),
        ):
            with pytest.raises(error):
                await supervisor.order_parked(WarmRequest(manifest=manifest, count=count))
        for least, most in ((3, None), (None, 1)):
            with pytest.raises(InvalidRequest):
                await supervisor.order_parked(WarmRequest(manifest="guest:warm", count=2, min=least, max=most))
        assert supervisor.pool.infos() == []


async def test_a_parked_clone_is_nobodys(site: Site) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        seen = supervisor.events.subscribe()
        await parked(supervisor, 1)
        (clone,) = clones(supervisor)
        for operation in (supervisor.pause(clone), supervisor.resume(clone), supervisor.snapshot(clone, "x")):
            with pytest.raises(WrongState):
                await operation
        assert (await clone.info()).metrics.memory is not None
        await supervisor.remove(clone, force=True)
        with pytest.raises(InstanceNotFound):
            supervisor.find(clone.id)
        await asyncio.sleep(0)
        await settled(supervisor)
        seen.close()
        assert {event.type async for event in seen} == {"warm.ordered", "warm.filled"}


async def test_a_clone_that_dies_is_replaced(site: Site) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 2)
        victim = clones(supervisor)[0]
        seen = supervisor.events.subscribe()
        site.vm(victim).crash()
        event = await anext(aiter(seen))
        assert (event.type, event.detail) == ("warm.died", {"manifest": "guest:warm"})
        assert event.cause is not None
        assert "SIGSEGV" in event.cause
        await until(lambda: supervisor.pool.infos()[0].parked == 2 and len(supervisor.instances()) == 2)
        assert victim.id not in {each.id for each in supervisor.instances()}
        assert await site.leaks(supervisor.instances()) == []


@pytest.mark.parametrize("how", ["refuse", "die"])
async def test_a_claim_that_fails_takes_the_next_clone(site: Site, how: str) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 2)
        site.fake.faults["resume"] = how
        instance = await start(supervisor, "guest:warm", name="web")
        assert instance.state is RUNNING
        assert instance.record.start is not None
        assert instance.record.start.path == "claimed"
        await until(lambda: supervisor.pool.infos()[0].parked == 2 and len(supervisor.instances()) == 3)
        assert await site.leaks(supervisor.instances()) == []


async def test_a_caller_that_goes_away_during_a_claim(site: Site) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 1)
        site.fake.faults["resume"] = "hang"
        request = StartRequest(manifest="guest:warm")
        caller = asyncio.create_task(supervisor.start(request))
        await site.fake.hanging.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        (clone,) = clones(supervisor)
        site.fake.released.set()
        assert await clone.wait_for(RUNNING) is RUNNING
        assert site.vm(clone).guest.going


async def test_clones_outlive_the_daemon(site: Site) -> None:
    async with leaving(site) as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 3)
        before = {each.id for each in clones(supervisor)}
        dead = clones(supervisor)[0]
        pid = site.vm(dead).pid
    await asyncio.to_thread(kill, pid)
    async with leaving(site) as supervisor:
        pool = await settled(supervisor)
        assert pool.count == 3
        await until(lambda: supervisor.pool.infos()[0].parked == 3)
        after = {each.id for each in clones(supervisor)}
        assert len(after & before) == 2
        await until(lambda: dead.id not in {each.id for each in supervisor.instances()})
        instance = await start(supervisor, "guest:warm")
        assert instance.record.start is not None
        assert instance.record.start.path == "claimed"
        await supervisor.dissolve_parked("guest:warm")
        await supervisor.remove(instance, force=True)
        await until_gone(supervisor)
        assert await site.leaks([]) == []
    async with leaving(site) as supervisor:
        assert supervisor.pool.infos() == []
        assert supervisor.instances() == []


async def test_a_claim_that_a_daemon_did_not_finish_is_finished_by_the_next(site: Site) -> None:
    async with leaving(site) as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 1)
        (clone,) = clones(supervisor)
    request = StartRequest(manifest="guest:warm")
    await asyncio.to_thread(
        edit, site, clone, state=RUNNING, pool=None, request=request, doing=Doing(what="claim"), start=None
    )
    async with leaving(site) as supervisor:
        instance = supervisor.find(clone.id)
        assert (instance.state, instance.record.doing) == (RUNNING, None)
        assert site.vm(instance).guest.going
        await supervisor.dissolve_parked("guest:warm")
        await supervisor.remove(instance, force=True)
        await until_gone(supervisor)


async def test_clones_that_nobody_ordered_any_more(site: Site) -> None:
    async with leaving(site) as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 2)
        orders: Path = supervisor._host.layout.warm_orders
    await asyncio.to_thread(orders.write_text, "{nonsense")
    async with leaving(site) as supervisor:
        await until_gone(supervisor)
        assert await site.leaks([]) == []


async def test_clones_are_stopped_with_the_daemon_if_machines_are(site: Site) -> None:
    async with site.daemon(on_exit="stop") as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 2)
    assert await asyncio.to_thread(site.processes) == {}
    assert await site.leaks([]) == []


async def test_memory_is_short(site: Site) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 4)
        supervisor.pool.refill.shortage = lambda: "it is short"
        supervisor.pool.refill.on_stall()
        await until(lambda: len(clones(supervisor)) == 3)
        assert supervisor.pool.infos()[0].trouble is not None
        instance = await start(supervisor, "guest:warm")
        assert instance.record.start is not None
        assert instance.record.start.path == "claimed"
        supervisor.pool.refill.shortage = lambda: None
        await until(lambda: supervisor.pool.infos()[0].parked == 4)


async def test_a_start_that_finds_no_memory_is_given_that_of_clones(site: Site) -> None:
    async with site.daemon() as supervisor:
        supervisor.memory.tick = lambda: None  # type: ignore[method-assign]  # the figures are the test's
        await warm_artifact(supervisor)
        await parked(supervisor, 2)
        capacity = supervisor._host.capacity
        reserve = capacity._figures

        def figures(promised: tuple[Reservation, ...], growth_bytes: int) -> tuple[int, int]:
            return (GUEST_MEMORY - MIB if clones(supervisor) else 1 << 40), reserve(promised, growth_bytes)[1]

        capacity._figures = figures  # type: ignore[method-assign]
        instance = await start(supervisor, "guest:plain")
        assert instance.state is RUNNING
        assert clones(supervisor) == []


async def test_the_clones_follow_the_reference(site: Site) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 2)
        first = {each.id for each in clones(supervisor)}
        await warm_artifact(supervisor)  # the name now means another snapshot
        await until(lambda: len(clones(supervisor)) == 2 and not first & {each.id for each in clones(supervisor)})
        instance = await start(supervisor, "guest:warm")
        assert instance.record.start is not None
        assert instance.record.start.path == "claimed"
        store = supervisor._host.store
        digest = await asyncio.to_thread(store.untag, "guest:warm")
        await until(lambda: clones(supervisor) == [])
        (pool,) = supervisor.pool.infos()
        assert (pool.digest, pool.wanted) == (None, 0)
        assert pool.trouble is not None
        assert "No such artifact" in pool.trouble
        assert digest == instance.record.manifest.digest


async def test_what_the_configuration_keeps_warm(site: Site) -> None:
    kept = (KeptWarm(reference="guest:warm", least=1, most=2),)
    async with leaving(site) as supervisor:
        await warm_artifact(supervisor)
    async with site.daemon(on_exit="leave", warm=kept) as supervisor:
        pool = await settled(supervisor)
        assert (pool.min, pool.max, pool.parked) == (1, 2, 1)
        assert (await parked(supervisor, 2)).parked == 2
    async with site.daemon(on_exit="leave", warm=kept) as supervisor:
        pool = await settled(supervisor)
        assert (pool.min, pool.max, pool.parked) == (2, 2, 2), "what was told goes before what is configured"
        await supervisor.dissolve_parked("guest:warm")
        await until_gone(supervisor)
    async with site.daemon(on_exit="leave", warm=kept) as supervisor:
        assert supervisor.pool.infos() == []


async def test_demand_lets_the_pool_grow(site: Site) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 1, min=0, max=3)
        for _ in range(4):
            await start(supervisor, "guest:warm")
        await until(lambda: supervisor.pool.infos()[0].parked == 3)


async def test_a_claim_that_has_no_room_to_grow_is_given_that_of_other_clones(site: Site) -> None:
    async with site.daemon(clone_budget_bytes=UNKNOWN_BYTES + MIB) as supervisor:
        supervisor.memory.tick = lambda: None  # type: ignore[method-assign]  # the figures are the test's
        await warm_artifact(supervisor)
        await parked(supervisor, 2)
        supervisor.pool.refill.shortage = lambda: "enough is enough"
        for clone in clones(supervisor):
            assert clone.seat is not None
            supervisor._host.capacity.clones.note(clone.seat, 2 * MIB)
        instance = await start(supervisor, "guest:warm")
        assert instance.record.start is not None
        assert instance.record.start.path == "claimed"
        assert clones(supervisor) == []
        with pytest.raises(CapacityExceeded):
            await start(supervisor, "guest:warm")
        assert await site.leaks(supervisor.instances()) == []


async def test_clones_do_not_give_way_for_nothing(site: Site) -> None:
    async with site.daemon() as supervisor:
        await warm_artifact(supervisor)
        await parked(supervisor, 2)
        with pytest.raises(CapacityExceeded):
            await start(supervisor, "guest:plain", memory="1T")
        assert len(clones(supervisor)) == 2
