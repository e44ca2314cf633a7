"""Machines on a daemon that is killed again and again, with a ledger of what must be true of each, and the audit."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from cache.pack import PackRequest, pack
from cache.store import Store
from ovms_supervisor.client import Client
from spec.api import MmioWrite, Overrides, WarmRequest
from spec.errors import OvmsError
from spec.instance import InstanceInfo
from spec.reference import parse_reference
from tests.cache.registry.small_registry import SmallRegistry
from tests.crash.console import goes_on, says, ticks
from tests.crash.daemon import Daemon
from tests.crash.leaks import leaks
from tests.supervisor.conftest import GUEST_MEMORY, Site
from vmm.driver import RuntimeName

ABSENT: Final = "absent"
INTERRUPTED: Final = "the daemon ended while it was starting"
SETTLES_S: Final = 30.0
PARKED: Final = 2


@dataclass
class Known:
    """What is known of one machine. While the daemon is asked for something, its outcome is in doubt."""

    name: str
    manifest: str
    may_be: frozenset[str]
    instance_id: str = ""
    nonces: frozenset[str] = frozenset()
    count: int = -1
    """The guest had come at least so far."""
    crashed: bool = False
    """Its VMM was killed."""


@dataclass
class World:
    site: Site
    runtime: RuntimeName
    daemon: Daemon = field(init=False)
    known: dict[str, Known] = field(default_factory=dict)
    pool: str | None = None
    parked: set[str] = field(default_factory=set)
    registry: SmallRegistry = field(default_factory=SmallRegistry)
    """Has ``app:1``."""
    handed_out: set[str] = field(default_factory=set)
    """Ids of clones that have become somebody's."""

    def __post_init__(self) -> None:
        self.daemon = Daemon(self.site.directory)
        self.publish()

    def publish(self) -> None:
        """Another ``app:1`` in the registry (blocks)."""
        elsewhere = Store(self.site.directory / "elsewhere")
        elsewhere.create()
        kernel = self.site.directory / "another.elf"
        kernel.write_bytes(self.site.kernel.read_bytes() + os.urandom(1 << 20))
        request = PackRequest(name=parse_reference("app:1"), kernel=kernel, memory_bytes=GUEST_MEMORY, cpus=1)
        artifact = elsewhere.artifact(pack(elsewhere, request))
        self.registry.add_manifest(artifact.oci_bytes, "1")
        for blob in artifact.blobs:
            self.registry.add_blob(elsewhere.blob_path(blob.content_digest).read_bytes())
        elsewhere.close()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with Client(self.daemon.socket) as client:
            yield client

    # --- what is asked of the daemon, with what may come of it if it dies meanwhile ----------------------------------

    async def start(self, client: Client, name: str, manifest: str, **overrides: str) -> None:
        known = self.known[name] = Known(name, manifest, frozenset({ABSENT, "failed", "running"}))
        reply = await client.start(
            manifest,
            Overrides(name=name, runtime=self.runtime, **overrides),  # type: ignore[arg-type]
            wait="running",
        )
        assert reply.info is not None, f"{name} does not start: {reply}"
        known.instance_id, known.may_be = reply.instance_id, frozenset({reply.status})
        assert reply.status == "running", f"{name} does not start: {reply.status}"
        if reply.info.metrics.start is not None and reply.info.metrics.start.path == "claimed":
            self._hand_out(reply.instance_id)

    async def stop(self, client: Client, name: str) -> None:
        await self._change(name, {"stopped"}, client.stop(name, timeout_s=0, wait="stopped"))

    async def pause(self, client: Client, name: str) -> None:
        await self._change(name, {"paused"}, client.pause(name))

    async def resume(self, client: Client, name: str) -> None:
        await self._change(name, {"running"}, client.resume(name))

    async def remove(self, client: Client, name: str) -> None:
        known = self.known[name]
        known.may_be |= {"stopped", "failed", ABSENT}
        await client.remove(name, force=True)
        del self.known[name]

    async def crash(self, client: Client, name: str) -> None:
        """Kill the VMM; the daemon has to notice."""
        known, info = self.known[name], await client.status(name)
        known.may_be, known.crashed = frozenset({"failed"}), True
        assert info.pid is not None
        os.kill(info.pid, signal.SIGKILL)

        async def noticed() -> list[str]:
            return [] if (await client.status(name)).status == "failed" else ["not noticed"]

        assert await _settled(noticed) == []

    async def order(self, client: Client, manifest: str, count: int = PARKED) -> None:
        self.pool, self.parked = manifest, set()  # fewer may be wanted now
        await client.warm(WarmRequest(manifest=manifest, count=count, runtime=self.runtime), wait="parked")

    async def _change(self, name: str, outcome: set[str], call: Awaitable[object]) -> None:
        known = self.known[name]
        known.may_be |= outcome
        await call
        known.may_be = frozenset(outcome)

    def _hand_out(self, instance_id: str) -> None:
        assert instance_id not in self.handed_out, f"clone {instance_id} was handed out twice"
        self.handed_out.add(instance_id)

    # --- the audit ----------------------------------------------------------------------------------------------------

    async def note(self, client: Client) -> None:
        """Before a kill: how far each guest has come, and which clones are parked."""
        for known in self.known.values():
            if known.may_be <= {"running", "paused"}:
                seen = await ticks(client, known.name)
                known.count, known.nonces = seen.last, seen.nonces
        everything = await client.instances(parked=True)
        self.parked = {each.instance_id for each in everything if each.status == "parked"}

    async def audit(self, client: Client) -> list[str]:
        """What is wrong now that the next daemon answers. Afterwards nothing is in doubt any more."""
        infos = {each.name or each.instance_id: each for each in await client.instances()}
        unknown = infos.keys() - self.known.keys()
        troubles = [f"{name} should not be there: {infos[name].status}" for name in unknown]
        for known in list(self.known.values()):
            troubles += await self._audit_one(client, known, infos.get(known.name))
        troubles += await self._audit_pool(client)
        troubles += await self.leaks(client)
        readiness = await client.readiness()
        troubles += readiness.reasons
        return troubles

    async def _audit_one(self, client: Client, known: Known, info: InstanceInfo | None) -> list[str]:
        status = info.status.value if info else ABSENT
        if status not in known.may_be:
            why = info.exit.reason if info and info.exit else ""
            return [f"{known.name} is {status} instead of {'/'.join(sorted(known.may_be))} {why}"]
        if info is None:
            del self.known[known.name]
            return []
        if known.instance_id and info.instance_id != known.instance_id:
            return [f"{known.name} is {info.instance_id} instead of {known.instance_id}"]
        troubles = [f"{known.name}: {each.code}: {each.detail}" for each in info.degraded if _matters(each.code)]
        if status == "failed" and not known.crashed and info.exit and info.exit.reason != INTERRUPTED:
            troubles.append(f"{known.name} has failed: {info.exit.reason}")
        if status == "running" and not known.instance_id and info.metrics.start is None:
            self._hand_out(info.instance_id)  # claimed: the times of that start were never written down
        known.may_be, known.instance_id = frozenset({status}), info.instance_id
        if status not in ("running", "paused"):
            return troubles
        if status == "running" and not await goes_on(client, known.name, known.count):
            troubles.append(f"{known.name} does not go on beyond {known.count:#x}")
        seen = await ticks(client, known.name)
        if known.nonces and seen.nonces != known.nonces:
            troubles.append(f"{known.name} has nonces {seen.nonces} instead of {known.nonces}")
        if seen.last < known.count:
            troubles.append(f"{known.name} has gone back from {known.count:#x} to {seen.last:#x}")
        known.count, known.nonces = seen.last, seen.nonces
        return [*troubles, *seen.troubles]

    async def _audit_pool(self, client: Client) -> list[str]:
        """Who was parked is so still, or somebody's, and nobody is both; there come to be as many as were ordered."""
        if self.pool is None:
            return []

        async def filled() -> list[str]:
            pools = await client.pools()
            return [str(each) for each in pools if each.parked != each.wanted]

        troubles = await _settled(filled)
        everything = await client.instances(parked=True)
        parked = {each.instance_id for each in everything if each.status == "parked"}
        somebodys = {each.instance_id for each in everything} - parked
        if lost := self.parked - parked - somebodys - self.handed_out:
            troubles.append(f"parked clones are gone: {sorted(lost)}")
        if both := parked & self.handed_out:
            troubles.append(f"parked again, though somebody's: {sorted(both)}")
        self.parked = parked
        return troubles

    async def leaks(self, client: Client) -> list[str]:
        """What is still left over after some seconds."""

        async def found() -> list[str]:
            instances, images = await client.instances(parked=True), await client.images()
            return await asyncio.to_thread(leaks, self.site.directory, self.daemon.pid, instances, images)

        return await _settled(found)

    async def control(self, client: Client, name: str) -> list[str]:
        """Everything that can be done with a machine, done. It is gone at the end."""
        known = self.known[name]
        await self.pause(client, name)
        await self.resume(client, name)
        if known.manifest in ("guest:shm", "guest:warm"):
            word = os.urandom(8)
            await client.inject(name, [MmioWrite(device="mmio0", data=word)])
            if not await says(client, name, word.hex()):
                return [f"{name} does not see what was injected"]
        await client.snapshot(name, f"again-{name}")
        clone = f"{name}-again"
        await self.start(client, clone, f"guest:again-{name}")
        troubles = await self.audit(client)
        await self.crash(client, clone)
        await self.remove(client, clone)
        await self.stop(client, name)
        await self.remove(client, name)
        return troubles

    async def tidy(self, client: Client) -> None:
        """Forget machines that have ended."""
        for name in [each.name for each in self.known.values() if each.may_be <= {"stopped", "failed"}]:
            await self.remove(client, name)

    async def release(self, client: Client) -> list[str]:
        """Stop and remove everything; then nothing may be left but the store."""
        for name in list(self.known):
            await self.remove(client, name)
        if self.pool is not None:
            for pool in await client.pools():
                await client.dissolve(pool.manifest)
            self.pool, self.parked = None, set()

        async def nobody() -> list[str]:
            return [f"{each.instance_id} is {each.status}" for each in await client.instances(parked=True)]

        troubles = await _settled(nobody)
        await client.prune(everything=True)
        for image in await client.images():
            with suppress(OvmsError):
                await client.free_image(image.digest)
        return troubles + await self.leaks(client) + self._remains()

    def _remains(self) -> list[str]:
        root, run, images = (self.site.directory / each for each in ("root", "run", "images"))
        places = [run / "instances", images / "instances", root / "instances", root / "storing"]
        places += [root / "ovms.blobs" / each for each in ("tmp", "claims", "partial", "pins")]
        left = [str(entry) for place in places if place.exists() for entry in place.iterdir()]
        return left + [str(each) for each in images.iterdir() if each.name.startswith("sha256")]

    async def end_machines(self) -> None:
        """Kill the VMMs of this site that a test which failed has left."""
        for pid in await asyncio.to_thread(self.site.processes):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # --- deaths -------------------------------------------------------------------------------------------------------

    async def until_dead(self, work: Callable[[Client], Awaitable[object]]) -> str | None:
        """Do something of which the daemon is to die; None if it did."""
        error: BaseException | None = None
        async with self.client() as client:
            task = asyncio.ensure_future(work(client))
            dead = asyncio.ensure_future(self.daemon.died())
            try:
                await asyncio.wait((task, dead), return_when=asyncio.FIRST_COMPLETED)
                if not dead.done():
                    await asyncio.wait((dead,), timeout=20)
            finally:
                for each in (task, dead):
                    each.cancel()
                results = await asyncio.gather(task, dead, return_exceptions=True)
                error = results[0] if isinstance(results[0], BaseException) else None
        if results[1] is True:
            return None
        return f"the step was not reached ({error!r})"


def _matters(code: str) -> bool:
    return code.startswith(("journal.", "logs.", "artifact.", "image.not_held", "snapshot.", "trust."))


async def _settled(look: Callable[[], Awaitable[list[str]]]) -> list[str]:
    """What is still wrong after a generous time."""
    deadline = asyncio.get_running_loop().time() + SETTLES_S
    while found := await look():
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.1)
    return found
