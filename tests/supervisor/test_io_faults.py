"""Any one file operation fails, in any order of start, snapshot, clone, pause, stop and remove.

Whatever it was, the caller is told in our own terms or it made no difference; nobody else notices, nothing is left, and
the next one works.
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress

import pytest

from ovms_supervisor.instance import Instance
from ovms_supervisor.supervisor import Supervisor
from spec.errors import ArtifactNotFound, InternalError, OvmsError
from spec.instance import InstanceState
from tests.supervisor.conftest import Site, ended, start
from tests.supervisor.io_faults import IoFaults

RUNNING, STOPPED, FAILED = InstanceState.RUNNING, InstanceState.STOPPED, InstanceState.FAILED

EVERY = int(os.environ.get("OVMS_IO_FAULTS_EVERY", "23"))
"""All of them take minutes: 1."""


async def story(supervisor: Supervisor, tag: str) -> list[str]:
    """What an operator does in a day; returns what went wrong, as it was told."""
    told: list[str] = []
    for manifest in ("guest:disk", f"guest:{tag}"):
        try:
            instance = await start(supervisor, manifest)
        except OvmsError as error:
            told.append(error.detail)
            continue
        if instance.state is RUNNING:
            try:
                await supervisor.pause(instance)
                await supervisor.resume(instance)
                await supervisor.snapshot(instance, f"guest:{tag}")
            except OvmsError as error:
                told.append(f"{error.code}: {error.detail}")
            await supervisor.stop(instance, 0)
        told += await _end(supervisor, instance)
    return told


async def _end(supervisor: Supervisor, instance: Instance) -> list[str]:
    state = await ended(instance)
    assert instance.record.exit is not None
    reason = instance.record.exit.reason
    assert state is (STOPPED if reason == "stopped on request" else FAILED), reason
    assert "inner error" not in reason, reason
    degraded = [each.code for each in instance.record.degraded]
    try:
        await supervisor.remove(instance, force=False)
    except OvmsError:
        await supervisor.remove(instance, force=False)  # asked again, it finishes
    return [*([reason] if state is FAILED else []), *degraded]


def _forget_snapshots(supervisor: Supervisor) -> None:
    store = supervisor._host.store
    with suppress(ArtifactNotFound):
        store.untag("guest:snap")
    store.remove_unreferenced()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EMFILE], ids=["ENOSPC", "EIO", "EMFILE"])
async def test_any_operation_fails_once(site: Site, error: int) -> None:
    at = {errno.ENOSPC: 0, errno.EIO: 5, errno.EMFILE: 11}[error] % EVERY
    wrong: list[str] = []
    left: list[str] = []
    async with site.daemon() as supervisor:
        bystander = await start(supervisor, name="bystander")
        while True:
            faults = IoFaults(site.directory, at, error)
            with faults.active():
                try:
                    async with asyncio.timeout(30):
                        told = await story(supervisor, "snap")
                    wrong += [f"{faults.struck}: {each}" for each in told if each.startswith(InternalError.code)]
                except Exception as raised:
                    wrong.append(f"{faults.struck}: {raised!r}")
            if not faults.struck:
                break
            await asyncio.to_thread(_forget_snapshots, supervisor)  # else each story would have more to do
            before, left = left, await site.leaks(supervisor.instances())
            wrong += [f"{faults.struck}: left {each}" for each in left if each not in before]
            assert wrong == []
            at += EVERY
        assert bystander.state is RUNNING
        assert at > 50, f"only {faults.seen} operations were seen"
        assert await story(supervisor, "after") == []
