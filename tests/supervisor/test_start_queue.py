"""A burst of starts: so many at once, some wait, more are refused, and all of that ends when the burst does."""

from __future__ import annotations

import anyio
import pytest

from ovms_supervisor.clock import Stopwatch
from ovms_supervisor.instance import Instance
from ovms_supervisor.start_queue import StartQueue
from ovms_supervisor.supervisor import Supervisor
from spec.api import StartRequest
from spec.errors import Overloaded
from spec.instance import InstanceState
from tests.supervisor.conftest import Site


async def test_starts_take_turns_and_waiting_is_a_phase() -> None:
    queue = StartQueue(most=10, at_once=2)
    watches = [Stopwatch() for _ in range(6)]
    now = most = 0

    async def begin(watch: Stopwatch) -> None:
        nonlocal now, most
        async with queue.turn(watch):
            now += 1
            most = max(most, now)
            await anyio.sleep(0.01)
            now -= 1

    async with anyio.create_task_group() as tasks:
        for watch in watches:
            tasks.start_soon(begin, watch)
    assert most == 2
    assert ["queue" in watch.phases_ms for watch in watches] == [False, False, True, True, True, True]


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    queue = StartQueue(most=2, at_once=1)
    async with queue.turn(Stopwatch()):
        with anyio.move_on_after(0.01):
            async with queue.turn(Stopwatch()):
                pytest.fail("it was not its turn")
        with queue.admitted(), pytest.raises(Overloaded, match="2 starts"), queue.admitted():
            pass
    with queue.admitted():
        async with queue.turn(Stopwatch()):
            pass


async def test_a_start_too_many_is_refused_and_the_next_is_not(site: Site) -> None:
    site.fake.faults["spawn"] = "hang"
    async with site.daemon(max_starts=1) as supervisor:
        first = await supervisor.start(StartRequest(manifest="guest:plain"))
        with anyio.fail_after(20):
            await site.fake.hanging.wait()
        with pytest.raises(Overloaded) as refused:
            await supervisor.start(StartRequest(manifest="guest:plain"))
        assert refused.value.fields == {"under_way": 1}
        assert supervisor.instances() == [first]
        site.fake.released.set()
        with anyio.fail_after(20):
            await first.wait_for(InstanceState.RUNNING)
        with anyio.fail_after(20):
            second = await _start_when_there_is_room(supervisor)
            await second.wait_for(InstanceState.RUNNING)


async def _start_when_there_is_room(supervisor: Supervisor) -> Instance:
    while True:
        try:
            return await supervisor.start(StartRequest(manifest="guest:plain"))
        except Overloaded:
            await anyio.sleep(0.01)
