"""Daemons that die at the most telling steps, on real QEMU, one after the other on the same machines.

All of the steps, on both runtimes, and deaths at random: ``scripts/crash-rounds``.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash import steps
from tests.crash.steps import Case
from tests.crash.world import World
from tests.supervisor.conftest import Site

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
]


def telling() -> list[Case]:
    """Each daemon takes over what the one before has left, and dies at its own step, which taking over has not."""
    by_name = {str(each): each for each in steps.cases("qemu")}
    return [
        by_name["start guest:disk start.spawned"],
        by_name["start guest:disk start.running"],
        by_name["snapshot guest:disk snapshot.saved"],
        by_name["snapshot guest:disk snapshot.named"],
        replace(by_name["snapshot guest:golden snapshot.saved"], subject="clone"),
        by_name["remove guest:disk remove.directory"],
        by_name["claim claim.journal"],
        by_name["stop guest:disk stop.ended"],
        by_name["prune prune.buried"],
        by_name["pull pull.blob"],
        by_name["park park.parked"],
    ]


@pytest.fixture
def world(tmpfs_dir: Path, guest_kernel: Path) -> World:
    return World(Site(tmpfs_dir, guest_kernel), "qemu")


async def test_what_is_left_by_daemons_that_die(world: World) -> None:
    try:
        await world.daemon.start()
        await steps.settle(world)
        await world.daemon.end()
        cases = telling()
        await world.daemon.start(cases[0].step)
        for case, after in zip(cases, [*cases[1:], None], strict=True):
            assert await steps.run(world, case, after.step if after else "") == [], case
            if "failed" in (case.outcome or ()):
                async with world.client() as client:
                    await world.tidy(client)
        async with world.client() as client:
            assert await world.control(client, "web") == []
            assert await world.release(client) == []
    finally:
        await world.daemon.end()
        await world.end_machines()
