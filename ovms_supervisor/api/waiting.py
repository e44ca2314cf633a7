"""``?wait=``: reply when the instance has come to a state, or has ended, or the time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ovms_supervisor.api.context import Context, reply
from ovms_supervisor.api.requests import Wait
from spec.api import StartReply
from spec.errors import OvmsError, VmmExited
from spec.instance import InstanceInfo, InstanceState

if TYPE_CHECKING:
    from ovms_supervisor.instance.instance import Instance


async def wait_for(context: Context, instance: Instance, timeout_s: float, *states: InstanceState) -> None:
    """Return when the instance is in a state or a final one, when the time is up, or when the daemon stops."""
    if instance.state in states:  # a claimed clone runs already: no task has to wait for that
        return
    await until(context, instance.wait_for(*states), timeout_s)


async def until(context: Context, moment: Coroutine[Any, Any, object], timeout_s: float) -> None:
    """Return when the moment has come, when the time is up, or when the daemon stops."""
    reached = asyncio.ensure_future(moment)
    stopping = asyncio.ensure_future(context.stopping.wait())
    try:
        await asyncio.wait((reached, stopping), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if reached.done():
            reached.result()
    finally:
        reached.cancel()
        stopping.cancel()


async def started_reply(context: Context, instance: Instance, wait: Wait | None) -> web.Response:
    """The reply to a start: at once, or when it runs. A start that failed is the error that it failed with."""
    info = None
    if wait:
        await wait_for(context, instance, wait.timeout_s, InstanceState.RUNNING)
        info = await instance.info()
        if info.status is InstanceState.FAILED:
            raise _failure(instance, info)
    return reply(
        StartReply(instance_id=instance.id, status=instance.state, info=info),
        status=201,
        headers={"Location": f"/status/{instance.id}"},
    )


def _failure(instance: Instance, info: InstanceInfo) -> OvmsError:
    """Why a start failed, as an error that names the instance, which is still there to be looked at."""
    error = instance.error
    if error is None:
        return VmmExited(info.exit.reason if info.exit else "the start failed", instance_id=instance.id)
    return type(error)(error.detail, remedy=error.remedy, **{**error.fields, "instance_id": instance.id})
