from __future__ import annotations

import asyncio

import aiohttp
import pytest

from ovms_supervisor.client import Client
from spec.errors import Conflict, InvalidReference, RateLimited
from tests.api.conftest import Daemon
from tests.api.fake_supervisor import DIGEST, FakeSupervisor

REFERENCE = "registry.example.com/demo/web:warm"


async def test_a_pull_is_told_with_its_figures(client: Client, supervisor: FakeSupervisor) -> None:
    reply = await client.pull(REFERENCE)
    assert (reply.status, reply.reference, reply.digest) == ("pulled", REFERENCE, DIGEST)
    assert (reply.network_bytes, reply.resumed_bytes, reply.there_bytes) == (3_000_000, 10, 5)
    assert reply.mb_per_s == pytest.approx(3.0)
    await client.pull(f"{REFERENCE}@{DIGEST}", policy="missing")
    assert supervisor.calls == [f"pull {REFERENCE} always", f"pull {REFERENCE}@{DIGEST} missing"]


async def test_a_pull_can_make_the_image_resident(client: Client, supervisor: FakeSupervisor) -> None:
    reply = await client.pull(REFERENCE, resident=True)
    assert (reply.resident_ms, reply.resident_bytes) == (1100.0, 1 << 28)
    assert supervisor.calls == [f"pull {REFERENCE} always resident"]


async def test_without_waiting_the_events_tell_the_end(client: Client, supervisor: FakeSupervisor) -> None:
    supervisor.hold.clear()
    reply = await client.pull(REFERENCE, wait=False)
    assert (reply.status, reply.digest) == ("pulling", None)
    await supervisor.entered.wait()
    events = supervisor.events.subscribe()
    supervisor.hold.set()
    assert (await anext(events)).type == "pull.done"
    events.close()


async def test_short_names_are_local(client: Client, supervisor: FakeSupervisor) -> None:
    with pytest.raises(InvalidReference):
        await client.pull("demo:base")
    assert not supervisor.calls


async def test_what_the_registry_says_is_handed_on(http: aiohttp.ClientSession, supervisor: FakeSupervisor) -> None:
    supervisor.fault = RateLimited("come back later", retry_after_s=3600.0)
    async with http.post("/pull", json={"reference": REFERENCE}) as response:
        assert response.status == 503
        assert (await response.json())["code"] == "registry.rate_limited"


@pytest.mark.parametrize("wait", [True, False])
async def test_a_daemon_that_stops_does_not_wait_for_pulls(
    client: Client, supervisor: FakeSupervisor, daemon: Daemon, wait: bool
) -> None:
    supervisor.hold.clear()
    pulling = asyncio.create_task(client.pull(REFERENCE, wait=wait))
    await supervisor.entered.wait()
    if not wait:
        await pulling
    async with asyncio.timeout(30):
        await daemon.context.operations.drain(3600)
        if wait:
            with pytest.raises(Conflict, match="the daemon is ending"):
                await pulling
    assert not supervisor.calls


async def test_a_client_that_leaves_leaves_the_pull(client: Client, supervisor: FakeSupervisor) -> None:
    supervisor.hold.clear()
    pulling = asyncio.create_task(client.pull(REFERENCE))
    await supervisor.entered.wait()
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    events = supervisor.events.subscribe()
    supervisor.hold.set()
    async with asyncio.timeout(30):
        assert (await anext(events)).type == "pull.done"
    events.close()
    assert supervisor.calls == [f"pull {REFERENCE} always"]


async def test_whether_the_policy_is_asked_can_be_told(http: aiohttp.ClientSession, supervisor: FakeSupervisor) -> None:
    for verify in (True, False, None):
        async with http.post("/pull", json={"reference": REFERENCE, "verify": verify}) as response:
            assert response.status == 200
    assert [each.rpartition(" ")[2] for each in supervisor.calls] == ["verified", "unverified", "always"]
