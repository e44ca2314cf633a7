"""Parked clones over the API: the real supervisor with fake VMMs, every exchange held to the document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ovms_supervisor.client import Client
from spec.api import WarmRequest
from spec.errors import InvalidRequest, NotFound
from spec.instance import InstanceState
from tests.api.conftest import Daemon
from tests.supervisor.conftest import Site, guest_kernel, site, start

__all__ = ["guest_kernel", "site"]


@asynccontextmanager
async def served(site: Site) -> AsyncIterator[Client]:
    """No fixture: a task group must be left by the task that entered it."""
    async with site.daemon() as supervisor:
        original = await start(supervisor, "guest:plain")
        await supervisor.snapshot(original, "warm")
        await supervisor.remove(original, force=True)
        daemon = Daemon(supervisor, site.directory / "api.sock", supervisor._host.images)
        daemon.context.metrics.registry.register(supervisor.pool.figures)
        await daemon.start()
        try:
            async with Client(daemon.socket) as client:
                yield client
        finally:
            await daemon.stop()


async def test_ordered_claimed_listed_dissolved(site: Site) -> None:
    async with served(site) as machines:
        pool = await machines.warm("guest:warm", 2, wait="parked")
        assert (pool.parked, pool.wanted, pool.manifest) == (2, 2, "guest:warm")
        assert await machines.instances() == []
        parked = await machines.instances(parked=True)
        assert [each.status for each in parked] == [InstanceState.PARKED] * 2
        assert await machines.instances(status=InstanceState.PARKED) == parked
        reply = await machines.start("guest:warm", wait="running")
        assert reply.info is not None
        assert reply.info.metrics.start is not None
        assert reply.info.metrics.start.path == "claimed"
        assert reply.instance_id in {each.instance_id for each in parked}
        assert [each.instance_id for each in await machines.instances()] == [reply.instance_id]
        (pool,) = await machines.pools()
        assert (pool.hits, pool.misses) == (1, 0)
        await machines.dissolve("guest:warm")
        assert await machines.pools() == []


async def test_a_clone_that_is_being_parked_is_nobodys_yet(site: Site) -> None:
    async with served(site) as machines:
        site.fake.faults["restore"] = "hang"
        await machines.warm("guest:warm", 1)
        await asyncio.wait_for(site.fake.hanging.wait(), 30)
        assert await machines.instances() == []
        (parking,) = await machines.instances(parked=True)
        assert parking.status == InstanceState.STARTING
        site.fake.released.set()
        await machines.dissolve("guest:warm")


async def test_a_start_that_cannot_wait_for_it_is_told_why(site: Site) -> None:
    async with served(site) as machines:
        await machines.warm(WarmRequest(manifest="guest:warm", count=1, min=0, max=2), wait="parked")
        reply = await machines.start("guest:warm", wait="running")
        other = await machines.start("guest:warm", wait="running")
        paths = {}
        for each in (reply, other):
            assert each.info is not None
            assert each.info.metrics.start is not None
            paths[each.info.metrics.start.path] = each.info.metrics.start.not_claimed
        assert paths["claimed"] is None


async def test_figures(site: Site) -> None:
    async with served(site) as machines:
        await machines.warm("guest:warm", 1, wait="parked")
        await machines.start("guest:warm", wait="running")
        await machines.warm("guest:warm", 1, wait="parked")
        found = {
            (sample.name, sample.labels.get("artifact")): sample.value
            for family in text_string_to_metric_families(await machines.metrics())
            for sample in family.samples
        }
        assert found["ovms_pool_parked", "guest:warm"] == 1
        assert found["ovms_pool_wanted", "guest:warm"] == 1
        assert found["ovms_pool_hits_total", "guest:warm"] == 1
        assert found["ovms_pool_claim_seconds_count", None] == 1
        assert found["ovms_pool_refill_seconds_count", None] == 2


async def test_wrong_orders(site: Site) -> None:
    async with served(site) as machines:
        with pytest.raises(InvalidRequest, match="no RAM snapshot"):
            await machines.warm("guest:plain", 1)
        with pytest.raises(NotFound):
            await machines.dissolve("guest:warm")
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(site.directory / "api.sock"))) as http:
            async with http.delete("http://ovms/warm?manifest=") as response:
                assert response.status == 400
            async with http.post("http://ovms/warm", json={"manifest": "guest:warm", "count": 2, "max": 1}) as response:
                assert response.status == 400


async def test_a_client_that_leaves_while_it_waits_leaves_the_order(site: Site) -> None:
    async with served(site) as machines:
        site.fake.faults["restore"] = "hang"
        waiting = asyncio.create_task(machines.warm("guest:warm", 1, wait="parked"))
        await site.fake.hanging.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        site.fake.released.set()
        assert (await machines.warm("guest:warm", 1, wait="parked")).parked == 1
