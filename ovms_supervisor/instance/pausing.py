"""Pause and resume: written down before and after, so that a daemon that dies in between leaves no doubt."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from ovms_supervisor.instance.instance import NOT_RESUMED, Instance
from ovms_supervisor.instance.record import Doing
from spec.errors import OvmsError, VmmExited, VmmRefused
from spec.instance import InstanceState

_NOT_ANSWERING: Final = "vmm.not_answering"


async def pause(instance: Instance) -> None:
    """Let the vCPUs stand still. Raises Vmm*; the machine then runs on."""
    vm = instance.running_vm()
    await _intend(instance, Doing(what="pause"))
    try:
        await vm.pause()
    except BaseException:
        await _take_back(instance, vm.resume)  # perhaps it stands still and only the answer was lost
        raise
    _answered(instance)
    await instance.become(InstanceState.PAUSED, "paused on request")


async def resume(instance: Instance) -> None:
    """Let the vCPUs go on. Raises Vmm*; the machine is then still paused."""
    vm = instance.running_vm()
    await _intend(instance, Doing(what="resume"))
    try:
        await vm.resume()
    except BaseException:
        await _take_back(instance, vm.pause)
        raise
    _answered(instance)
    instance.is_well_again(NOT_RESUMED)
    await instance.become(InstanceState.RUNNING, "resumed on request")


async def _take_back(instance: Instance, opposite: Callable[[], Awaitable[None]]) -> None:
    """Undo what may have been done, and write that down: else the next daemon would finish what was given up here."""
    with anyio.CancelScope(shield=True):
        try:
            await opposite()
        except (VmmExited, VmmRefused):
            pass  # the life of the instance is about to tell; or it is as it should be
        except OvmsError as error:
            instance.degrade(_NOT_ANSWERING, f"whether its vCPUs run is not known for certain: {error.detail}")
        instance.record.doing = None
        await instance.save()


def _answered(instance: Instance) -> None:
    instance.record.doing = None
    instance.is_well_again(_NOT_ANSWERING)


async def _intend(instance: Instance, doing: Doing) -> None:
    instance.record.doing = doing
    await instance.save()
