"""Kills by the hundred: ``scripts/crash-rounds``."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash import load, steps
from tests.crash.world import World
from tests.supervisor.conftest import GUEST_SOURCE, Site
from vmm.driver import RuntimeName

ROUNDS_OF_A_WORLD = 10
PATIENCE_S = 300.0


@dataclass
class Options:
    stop: bool
    keep: bool
    kept: list[Path] = field(default_factory=list)

    def gives_up(self, world: World) -> bool:
        """Something went wrong there: whether that is enough."""
        if self.stop or self.keep:
            self.kept.append(world.site.directory)
        return self.stop


@asynccontextmanager
async def new_world(runtime: RuntimeName, options: Options) -> AsyncIterator[World]:
    """A site on the tmpfs of its own. Left there, for whoever looks, if ``options`` say so."""
    directory = Path(tempfile.mkdtemp(prefix="ovms-crash-", dir="/dev/shm"))
    kernel = directory / "guest.elf"
    await asyncio.to_thread(subprocess.run, [GUEST_SOURCE / "build", kernel], check=True, timeout=30)
    world = await asyncio.to_thread(lambda: World(Site(directory, kernel), runtime))
    world.daemon.limit_s = PATIENCE_S
    try:
        yield world
    finally:
        await world.daemon.end()
        await world.end_machines()
        if directory not in options.kept:
            await asyncio.to_thread(shutil.rmtree, directory)


async def run_steps(runtime: RuntimeName, only: str, options: Options) -> int:
    """Each case; returns how many have found something wrong."""
    bad, waiting = 0, [case for case in steps.cases(runtime) if only in str(case)]
    total = len(waiting)
    while waiting:
        async with new_world(runtime, options) as world:
            await world.daemon.start()
            await steps.settle(world)
            for _ in range(ROUNDS_OF_A_WORLD):
                if not waiting:
                    break
                case = waiting.pop(0)
                began_s = time.monotonic()
                try:
                    troubles = await steps.run_prepared(world, case)
                except Exception as error:
                    troubles = traceback.format_exception(error)
                tell(f"{total - len(waiting):3}/{total} {runtime} {case}", troubles, began_s)
                if troubles:
                    bad += 1
                    break  # whatever is wrong here: the next in a new world
            else:
                bad += await released(world)
                continue
            if not troubles:
                bad += await released(world)
            elif options.gives_up(world):
                break
    return bad


async def run_random(runtime: RuntimeName, rounds: int, seed: int, options: Options) -> int:
    """Kills at random moments under load; returns how many rounds have found something wrong."""
    bad, number = 0, 0
    while number < rounds:
        async with new_world(runtime, options) as world:
            await world.daemon.start()
            await steps.settle(world)
            troubles: list[str] = []
            for _ in range(min(ROUNDS_OF_A_WORLD, rounds - number)):
                began_s, own_seed = time.monotonic(), seed + number
                number += 1
                told = ""
                try:
                    told, troubles = await load.round_of(world, random.Random(own_seed))
                except Exception as error:
                    troubles = traceback.format_exception(error)
                tell(f"{number:3}/{rounds} {runtime} seed {own_seed} {told}", troubles, began_s)
                if troubles:
                    bad += 1
                    break
            if not troubles:
                bad += await released(world)
            elif options.gives_up(world):
                break
    return bad


async def released(world: World) -> int:
    """Everything stopped and removed: 1 if something is left."""
    began_s = time.monotonic()
    async with world.client() as client:
        try:
            troubles = await world.release(client)
        except Exception as error:
            troubles = [f"{type(error).__name__}: {error}"]
    tell("        all removed", troubles, began_s)
    return bool(troubles)


def tell(what: str, troubles: list[str], began_s: float) -> None:
    print(f"{what}: {'WRONG' if troubles else 'ok'} ({time.monotonic() - began_s:.1f} s)", flush=True)
    for each in troubles:
        print(f"      {each}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/crash-rounds", description=__doc__)
    parser.add_argument("what", choices=("steps", "random"), nargs="?", default="steps")
    parser.add_argument("--rounds", type=int, default=100, help="of 'random'")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; round n has the seed SEED + n - 1")
    parser.add_argument("--runtime", choices=("qemu", "cloud-hypervisor"), default="qemu")
    parser.add_argument("--only", default="", help="of 'steps': those whose name has this in it")
    parser.add_argument("--stop", action="store_true", help="at the first that goes wrong, and leave its directory")
    parser.add_argument("--keep", action="store_true", help="leave the directories in which something went wrong")
    chosen = parser.parse_args()
    options = Options(stop=chosen.stop, keep=chosen.keep)
    if chosen.what == "steps":
        work = run_steps(chosen.runtime, chosen.only, options)
    else:
        work = run_random(chosen.runtime, chosen.rounds, chosen.seed, options)
    bad = asyncio.run(work)
    print(f"{bad} went wrong" if bad else "all went well")
    for directory in options.kept:
        print(f"left for you to look at: {directory}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
