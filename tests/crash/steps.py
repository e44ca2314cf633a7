"""What has to be asked of a daemon so that it comes to each step at which it may die, and what must come of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ovms_supervisor.client import Client
from spec import fault_points
from tests.cache.registry.small_registry import serving
from tests.crash.world import ABSENT, PARKED, World
from vmm.driver import RuntimeName

Work = Callable[[World, Client, str], Awaitable[object]]


@dataclass(frozen=True)
class Case:
    """One step in one scenario. ``outcome``: what the machine that it is about must be afterwards."""

    scenario: str
    step: str
    work: Work
    outcome: frozenset[str] | None = None
    prepare: Work | None = None
    """Done before the daemon that is to die is started."""
    subject: str = "subject"
    """The machine that it is about."""

    def __str__(self) -> str:
        return f"{self.scenario} {self.step}"


def _start(manifest: str) -> Work:
    async def work(world: World, client: Client, name: str) -> None:
        await world.start(client, name, manifest)

    return work


async def _snapshot(world: World, client: Client, name: str) -> None:
    await client.snapshot(name, "made")


async def _snapshot_paused(world: World, client: Client, name: str) -> None:
    await world.pause(client, name)
    await client.snapshot(name, "made")


async def _stop(world: World, client: Client, name: str) -> None:
    await world.stop(client, name)


async def _remove(world: World, client: Client, name: str) -> None:
    await world.remove(client, name)


async def _order_more(world: World, client: Client, _: str) -> None:
    await world.order(client, "guest:warm", PARKED + 1)


async def _claim(world: World, client: Client, name: str) -> None:
    await world.start(client, name, "guest:warm")


async def _prune(_: World, client: Client, __: str) -> None:
    for _round in range(2):  # the second takes the name of the first
        await client.snapshot("web", "made")
    await client.prune(everything=True)


async def _publish(world: World, _: Client, __: str) -> None:
    await asyncio.to_thread(world.publish)


async def _pull(world: World, client: Client, _: str) -> None:
    """An artifact that is not here."""
    async with serving(world.registry) as registry:
        await client.pull(f"{registry.host}/app:1")


async def _evict_and_start(world: World, client: Client, name: str) -> None:
    for image in await client.images():
        if not image.users:
            await client.free_image(image.digest)
    await world.start(client, name, "guest:golden")


def _started(step: str) -> frozenset[str]:
    return frozenset({{"start.directory": ABSENT, "start.running": "running"}.get(step, "failed")})


RUNNING = frozenset({"running"})
_NOT_IN_PLACE = frozenset(
    {"snapshot.restored", "snapshot.named", "snapshot.resumed", "snapshot.recorded", "snapshot.resident"}
)
"""The steps of a successor, and of an image that is there as it was saved: that of a clone is made of its layers."""


def cases(runtime: RuntimeName) -> list[Case]:
    """Every named step in every scenario that comes to it."""
    found: list[Case] = []
    for manifest in ("guest:disk", "guest:golden"):
        found += [Case(f"start {manifest}", step, _start(manifest), _started(step)) for step in fault_points.START]
    for step in fault_points.LOAD:
        outcome = frozenset({"failed"})
        found.append(Case("start guest:golden, to be loaded", step, _evict_and_start, outcome))
    found += [
        Case("claim", "claim.taken", _claim, frozenset({ABSENT})),
        Case("claim", "claim.journal", _claim, RUNNING),
        Case("claim", "claim.resumed", _claim, RUNNING),
    ]
    for manifest in ("guest:disk", "guest:golden"):
        prepare = _start(manifest)
        found += [Case(f"stop {manifest}", step, _stop, frozenset({"stopped"}), prepare) for step in fault_points.STOP]
        found += [
            Case(f"remove {manifest}", step, _remove, frozenset({ABSENT}), prepare) for step in fault_points.REMOVE
        ]
        for step in fault_points.SNAPSHOT:
            if manifest == "guest:golden" and step in _NOT_IN_PLACE:
                continue
            found.append(Case(f"snapshot {manifest}", step, _snapshot, RUNNING, prepare))
    for step in ("snapshot.prepared", "snapshot.saved", "snapshot.restored", "snapshot.named", "snapshot.recorded"):
        found.append(
            Case("snapshot of a paused one", step, _snapshot_paused, frozenset({"paused"}), _start("guest:disk"))
        )
    found += [Case("park", step, _order_more) for step in fault_points.PARK]
    found += [Case("prune", step, _prune) for step in fault_points.PRUNE]
    found += [Case("pull", step, _pull, None, _publish) for step in fault_points.PULL]
    return found


async def settle(world: World) -> None:
    """Machines to be bystanders and originals: a cold one, its clone, and two clones parked."""
    async with world.client() as client:
        await world.start(client, "web", "guest:shm")
        await world.start(client, "golden", "guest:disk")
        await client.snapshot("web", "warm")
        await client.snapshot("golden", "golden")
        await world.remove(client, "golden")
        await world.start(client, "clone", "guest:warm")
        await world.order(client, "guest:warm")


async def run_prepared(world: World, case: Case) -> list[str]:
    """One case from a daemon that runs to the next one, with everything done that can be done with its machine."""
    if case.prepare is not None:
        async with world.client() as client:
            await case.prepare(world, client, case.subject)
    await world.daemon.end()
    await world.daemon.start(case.step)
    troubles = await run(world, case)
    if troubles:
        return troubles
    async with world.client() as client:
        subject = world.known.get(case.subject)
        if subject is not None and subject.may_be == {"paused"}:
            await world.resume(client, subject.name)
        if subject is not None and subject.may_be == {"running"}:
            troubles += await world.control(client, subject.name)
        await world.tidy(client)
        if case.scenario == "pull":
            await case.work(world, client, case.subject)  # goes on with what has arrived
        await world.order(client, "guest:warm")
        await client.prune()
        return troubles + await world.audit(client)


async def run(world: World, case: Case, next_die_at: str = "") -> list[str]:
    """Let the running daemon die at its step, and look what the next one makes of it."""
    async with world.client() as client:
        await world.note(client)
    not_reached = await world.until_dead(lambda client: case.work(world, client, case.subject))
    if not_reached is not None:
        return [not_reached]
    if case.outcome is not None:
        if case.subject in world.known:
            world.known[case.subject].may_be = case.outcome
        elif case.outcome != {ABSENT}:
            return [f"{case.subject} was never asked for"]
    await world.daemon.start(next_die_at)
    async with world.client() as client:
        return await world.audit(client)
