from __future__ import annotations

import asyncio

import aiohttp
import pytest

from ovms_supervisor.client import Client
from spec.errors import AuthenticationFailed, InvalidReference
from tests.api.conftest import Daemon
from tests.api.fake_supervisor import DIGEST, FakeSupervisor

REFERENCE = "registry.example.com/demo/web:warm"


async def test_a_push_is_told_with_its_figures(client: Client, supervisor: FakeSupervisor) -> None:
    reply = await client.push(REFERENCE)
    assert (reply.status, reply.reference, reply.digest, reply.subject) == ("pushed", REFERENCE, DIGEST, "pushed")
    assert (reply.sent_bytes, reply.there_bytes, reply.mounted_bytes) == (3_000_000, 5, 7)
    assert reply.mb_per_s == pytest.approx(3.0)
    await client.push(REFERENCE, source="sha256:abcdef")
    assert supervisor.calls == [f"push {REFERENCE} {REFERENCE}", f"push sha256:abcdef {REFERENCE}"]


async def test_without_waiting_the_events_tell_the_end(client: Client, supervisor: FakeSupervisor) -> None:
    supervisor.hold.clear()
    reply = await client.push(REFERENCE, wait=False)
    assert (reply.status, reply.digest) == ("pushing", None)
    await supervisor.entered.wait()
    events = supervisor.events.subscribe()
    supervisor.hold.set()
    assert (await anext(events)).type == "push.done"
    events.close()


@pytest.mark.parametrize(("reference", "source"), [("demo:base", None), (REFERENCE, "/tmp/x.tar"), (REFERENCE, "A")])
async def test_what_cannot_be_pushed(
    client: Client, supervisor: FakeSupervisor, reference: str, source: str | None
) -> None:
    with pytest.raises(InvalidReference):
        await client.push(reference, source=source)
    assert not supervisor.calls


async def test_what_the_registry_says_is_handed_on(http: aiohttp.ClientSession, supervisor: FakeSupervisor) -> None:
    supervisor.fault = AuthenticationFailed("registry.example.com denies the credentials")
    async with http.post("/push", json={"reference": REFERENCE}) as response:
        assert response.status == 502
        assert (await response.json())["code"] == "registry.authentication"


async def test_a_client_that_leaves_leaves_the_push(client: Client, supervisor: FakeSupervisor, daemon: Daemon) -> None:
    supervisor.hold.clear()
    pushing = asyncio.create_task(client.push(REFERENCE))
    await supervisor.entered.wait()
    pushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pushing
    supervisor.hold.set()
    await daemon.context.operations.drain(10)
    assert supervisor.calls == [f"push {REFERENCE} {REFERENCE}"]
