"""Pause and resume: written down before and after, so that a daemon that dies in between leaves no doubt."""

from __future__ import annotations

from contextlib import suppress

import anyio

from ovms_supervisor.instance.instance import Instance
from ovms_supervisor.instance.record import Doing
from spec.errors import OvmsError
from spec.instance import InstanceState


async def pause(instance: Instance) -> None:
    """Let the vCPUs stand still. Raises Vmm*; the machine then runs on."""
    vm = instance.running_vm()
    await _intend(instance, Doing(what="pause"))
    try:
        await vm.pause()
    except BaseException:
        with anyio.CancelScope(shield=True), suppress(OvmsError):
            await vm.resume()  # perhaps it stands still and only the answer was lost
        instance.record.doing = None
        raise
    instance.record.doing = None
    await instance.become(InstanceState.PAUSED, "paused on request")


async def resume(instance: Instance) -> None:
    """Let the vCPUs go on. Raises Vmm*; the machine is then still paused."""
    vm = instance.running_vm()
    await _intend(instance, Doing(what="resume"))
    try:
        await vm.resume()
    except BaseException:
        with anyio.CancelScope(shield=True), suppress(OvmsError):
            await vm.pause()
        instance.record.doing = None
        raise
    instance.record.doing = None
    await instance.become(InstanceState.RUNNING, "resumed on request")


async def _intend(instance: Instance, doing: Doing) -> None:
    instance.record.doing = doing
    await instance.save()
