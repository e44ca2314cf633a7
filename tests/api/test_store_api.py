"""Resident images and the garbage of the store over the API: the real supervisor, held to the document."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cache.store import Store
from ovms_supervisor.client import Client
from ovms_supervisor.supervisor import Supervisor
from spec.api import Event
from spec.digest import Digest
from spec.errors import BlobNotFound, InUse, InvalidDigest
from tests.api.conftest import Daemon
from tests.supervisor.conftest import Site, guest_kernel, site, start

__all__ = ["guest_kernel", "site"]


@asynccontextmanager
async def served(site: Site, store_limit_bytes: int = 0) -> AsyncIterator[tuple[Client, Supervisor]]:
    async with site.daemon(store_limit_bytes=store_limit_bytes) as supervisor:
        daemon = Daemon(supervisor, site.directory / "api.sock", supervisor._host.images)
        await daemon.start()
        try:
            async with Client(daemon.socket) as client:
                yield client, supervisor
        finally:
            await daemon.stop()


async def test_images_are_listed_kept_while_used_and_freed(site: Site) -> None:
    async with served(site) as (client, supervisor):
        assert await client.images() == []
        machine = await start(supervisor, "guest:plain")
        await supervisor.snapshot(machine, "warm")
        [image] = await client.images()
        assert (image.references, image.users) == (["guest:warm"], 1)
        assert image.size_bytes > 0
        with pytest.raises(InUse):
            await client.free_image(image.digest)
        await supervisor.remove(machine, force=True)
        assert [each.users for each in await client.images()] == [0]
        await client.free_image(image.digest)
        assert await client.images() == []
        with pytest.raises(BlobNotFound):
            await client.free_image(image.digest)
        with pytest.raises(InvalidDigest):
            await client.free_image("sha256:x")
        await start(supervisor, "guest:warm")  # it is loaded again
        assert [each.users for each in await client.images()] == [1]


async def test_prune_frees_disk_and_memory_of_what_nobody_refers_to(site: Site) -> None:
    async with served(site) as (client, supervisor):
        machine = await start(supervisor, "guest:disk")
        await supervisor.snapshot(machine, "warm")
        [image] = await client.images()
        await asyncio.to_thread(supervisor._host.store.untag, "guest:warm")
        reply = await client.prune(everything=True)
        assert (reply.removed, reply.freed_bytes) == ([], 0), "the machine goes on as a clone of it"
        await supervisor.remove(machine, force=True)
        planned = await client.prune(dry_run=True)
        assert f"images/{image.digest}" in {each.what for each in planned.removed}
        assert len(await client.images()) == 1
        done = await client.prune()
        assert {each.what for each in done.removed} == {each.what for each in planned.removed}
        assert done.freed_bytes == sum(each.size_bytes for each in done.removed) > 0
        assert await client.images() == []
        everything = await client.prune(everything=True)
        assert {each.what.partition("/")[0] for each in everything.removed} == {"disks"}
        await start(supervisor, "guest:disk")


def two_of_one_name(site: Site) -> tuple[Store, Digest]:
    """A store, and the artifact in it that has lost its name to another one."""
    store = Store(site.directory / "root")
    disk = site.directory / "disk.raw"
    disk.write_bytes(os.urandom(1 << 20))
    site.pack(store, "guest:big", disks=(disk,))
    digest = next(each.digest for each in store.list() if each.name == "guest:big")
    site.pack(store, "guest:big")
    store.close()
    return store, digest


async def test_the_store_keeps_within_its_limit(site: Site) -> None:
    store, nameless = await asyncio.to_thread(two_of_one_name, site)
    size_bytes = await asyncio.to_thread(store.size_bytes)
    async with served(site, size_bytes - 4096) as (client, supervisor):
        stream = client.events(since=0)
        async with asyncio.timeout(30):
            causes = [event.cause async for event in _until(stream, "store.pruned")]
        await stream.aclose()
        assert causes[-1] == "the store's limit"
        assert not store.has_blob(nameless)
        assert await asyncio.to_thread(store.size_bytes) < size_bytes
        await start(supervisor, "guest:big")


async def _until(stream: AsyncIterator[Event], kind: str) -> AsyncIterator[Event]:
    async for event in stream:
        yield event
        if event.type == kind:
            return
