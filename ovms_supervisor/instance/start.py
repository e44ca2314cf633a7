"""The start steps of an instance that exists: each named, timed, and undone by the exit stack of its life."""

from __future__ import annotations

from pathlib import Path

from ovms_supervisor.instance.holdings import hold_directory, hold_image
from ovms_supervisor.instance.launch import launch
from ovms_supervisor.instance.life import Life
from ovms_supervisor.instance.materialisation import materialise
from ovms_supervisor.instance.plan import Plan
from spec.fault_points import reach
from spec.instance import InstanceState, StartMetrics


async def start(life: Life, plan: Plan, *, park: bool = False) -> None:
    """Bring the instance to ``running``, or with ``park`` to where only a resume is missing.

    ``resolve`` and ``admit`` have been before it existed.
    """
    instance = life.instance
    hold_directory(instance, life.undo)
    hold_image(instance, life.undo)
    with plan.watch.phase("materialise"):
        machine = await materialise(instance, plan, life.undo)
    state_dir: Path | None = instance.image.state_dir if instance.image else None
    driver = instance.host.driver(plan.runtime.name)
    reach("start.files")
    with plan.watch.phase("launch"):
        await launch(instance, driver, machine, state_dir, life.undo, plan.watch, resume=not park)
    reach("start.launched")
    instance.record.start = StartMetrics(
        total_ms=plan.watch.total_ms,
        phases=plan.watch.phases_ms,
        path="restored" if state_dir else "booted",
        not_claimed=plan.not_claimed,
    )
    if park:
        await instance.become(InstanceState.PARKED, "restored, to be claimed")
        reach("park.parked")
        return
    await instance.become(InstanceState.RUNNING, "restored from its snapshot" if state_dir else "booted")
    reach("start.running")
