"""The end of a daemon: what is under way gets its time, then machines are stopped or left running."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import anyio

from ovms_supervisor.config import Settings
from ovms_supervisor.instance import Life, StopOrder
from spec.instance import InstanceState, is_final, is_live

DRAIN_S: Final = 10.0
"""How long starts, stops and snapshots under way may take."""
STOP_S: Final = 60.0
"""Beyond the grace of the guests: how long the VMMs may take to end when all are stopped."""


async def drain(settings: Settings, lives: Collection[Life], snapshots: Collection[anyio.Event]) -> None:
    """Return when nothing is under way any more, or the time is up.

    With ``on_exit`` ``stop`` all machines have ended then; with ``leave`` they run, or are paused.
    """
    for life in lives:
        state = life.instance.state
        if settings.on_exit == "stop" and is_live(state):
            await life.stop(StopOrder(settings.stop_grace_s, "stopped with the daemon"))
        elif state is InstanceState.STOPPING:
            await life.stop(StopOrder(DRAIN_S, "stopped on request"))  # a longer grace is cut short
    with anyio.move_on_after(settings.stop_grace_s + STOP_S if settings.on_exit == "stop" else DRAIN_S):
        async with anyio.create_task_group() as waiting:
            for life in lives:
                waiting.start_soon(_settled, life, settings.on_exit == "leave")
            for snapshot in snapshots:
                waiting.start_soon(snapshot.wait)


async def _settled(life: Life, may_run: bool) -> None:
    if may_run:
        state = await life.instance.wait_for(InstanceState.RUNNING, InstanceState.PAUSED, InstanceState.PARKED)
        if not is_final(state):
            return
    await life.ended.wait()
