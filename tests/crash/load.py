"""A round at random: several hands at work, and ``kill -9`` at whatever moment."""

from __future__ import annotations

import asyncio
import random

import aiohttp

from ovms_supervisor.client import Client
from spec.errors import OvmsError
from tests.crash.world import World

HANDS = 4
MOST_MACHINES = 8


async def round_of(world: World, choice: random.Random) -> tuple[str, list[str]]:
    """What was under way, and what is wrong afterwards."""
    doing: dict[int, str] = {}
    killed = asyncio.Event()
    async with world.client() as client:
        await world.note(client)
        troubles: list[str] = []
        hands = [
            asyncio.create_task(_hand(world, client, number, random.Random(choice.random()), doing, troubles, killed))
            for number in range(HANDS)
        ]
        await asyncio.sleep(choice.uniform(0.0, 4.0))
        killed.set()
        await world.daemon.end()
        for hand in hands:
            hand.cancel()
        await asyncio.gather(*hands, return_exceptions=True)
    told = ", ".join(doing.values())
    if choice.random() < 0.3:  # and once more, while it takes over what was left
        await world.daemon.spawn()
        await asyncio.sleep(choice.uniform(0.3, 2.0))
        await world.daemon.end()
        told += ", killed twice"
    await world.daemon.start()
    async with world.client() as client:
        troubles += await world.audit(client)
        await world.tidy(client)
        for name in [each.name for each in world.known.values() if each.name[0] == "h"]:
            if len(world.known) > MOST_MACHINES or choice.random() < 0.2:
                await world.remove(client, name)
    return told, troubles


async def _hand(
    world: World,
    client: Client,
    number: int,
    choice: random.Random,
    doing: dict[int, str],
    troubles: list[str],
    killed: asyncio.Event,
) -> None:
    """One who works on machines of their own, one thing after the other, until the daemon is gone."""
    try:
        for turn in range(100):
            mine = [each for each in world.known if each.startswith(f"h{number}-")]
            name = choice.choice(mine) if mine else None
            state = min(world.known[name].may_be) if name else "absent"
            what = choice.choice(_POSSIBLE[state] if len(mine) < 3 else _POSSIBLE[state][1:] or _POSSIBLE[state])
            if what in ("start", "clone", "claim"):
                taken = world.known.keys()
                name = next(n for n in (f"h{number}-{i}" for i in range(100)) if n not in taken)
            assert name is not None
            doing[number] = f"{what} {name}"
            await _do(world, client, what, name, turn)
    except (OvmsError, OSError, aiohttp.ClientError) as error:
        if not killed.is_set():
            troubles.append(f"{doing.get(number)}: {error!r}")
    except AssertionError as error:
        troubles.append(f"{doing.get(number)}: {error!r}")


_POSSIBLE = {
    "absent": ["start", "clone", "claim"],
    "running": ["claim", "start", "clone", "stop", "remove", "snapshot", "snapshot", "pause", "prune", "crash"],
    "paused": ["claim", "start", "resume", "snapshot", "stop", "remove"],
    "stopped": ["claim", "remove"],
    "failed": ["remove"],
}


async def _do(world: World, client: Client, what: str, name: str, turn: int) -> None:
    match what:
        case "start":
            await world.start(client, name, "guest:disk")
        case "clone":
            await world.start(client, name, "guest:golden")
        case "claim":
            await world.start(client, name, "guest:warm")
        case "stop":
            await world.stop(client, name)
        case "remove":
            await world.remove(client, name)
        case "pause":
            await world.pause(client, name)
        case "resume":
            await world.resume(client, name)
        case "snapshot":
            await client.snapshot(name, f"s-{name}-{turn % 2}")
        case "crash":
            await world.crash(client, name)
        case "prune":
            await client.prune(everything=True)
