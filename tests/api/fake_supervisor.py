"""A supervisor without machines: real events and consoles, and calls that can be made to hang or to fail."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from types import SimpleNamespace

from cache.registry.pull import Pulled
from cache.registry.push import Pushed
from ovms_supervisor.clock import utc_now
from ovms_supervisor.events import EventHub
from ovms_supervisor.logs.console_log import ConsoleLog
from spec.api import MmioWrite, SnapshotReply, StartRequest
from spec.digest import Digest
from spec.errors import InstanceNotFound, OutOfRange, OvmsError, WrongState
from spec.instance import (
    DeviceInfo,
    InstanceInfo,
    InstanceState,
    ManifestInfo,
    MemoryMetrics,
    Metrics,
    RuntimeInfo,
    StartMetrics,
    is_final,
)
from spec.reference import Reference

DIGEST = "sha256:" + "ab" * 32
DEVICE_BYTES = 4096

_RUNTIME = RuntimeInfo(name="qemu", version="7.2", accelerator="tcg", reason="the only one")
_START = StartMetrics(total_ms=12.5, phases={"launch": 12.0})


class FakeInstance:
    def __init__(self, directory: Path, request: StartRequest) -> None:
        self.id = str(uuid.uuid4())
        self.name = request.overrides.name
        self.state = InstanceState.STARTING
        self.error: OvmsError | None = None
        self.memory = bytearray(DEVICE_BYTES)
        directory = directory / self.id
        directory.mkdir()
        self.console = ConsoleLog(directory / "console.log", directory / "console.index", limit_bytes=256 << 10)
        self._ref = request.manifest
        self._created = utc_now()
        self._changed = asyncio.Condition()

    @property
    def record(self) -> SimpleNamespace:
        """What the figures need of it."""
        return SimpleNamespace(boot="cold", runtime=_RUNTIME, start=_START, pool=None)

    def prints(self, data: bytes) -> None:
        with self.console.path.open("ab") as file:
            file.write(data)

    async def become(self, state: InstanceState, error: OvmsError | None = None) -> None:
        self.state, self.error = state, error
        if is_final(state):
            await self.console.close(state)
        async with self._changed:
            self._changed.notify_all()

    async def wait_for(self, *states: InstanceState) -> InstanceState:
        async with self._changed:
            await self._changed.wait_for(lambda: self.state in states or is_final(self.state))
        return self.state

    async def info(self) -> InstanceInfo:
        live = not is_final(self.state)
        return InstanceInfo(
            instance_id=self.id,
            name=self.name,
            status=self.state,
            manifest=ManifestInfo(ref=self._ref, digest=DIGEST),
            boot="cold",
            runtime=_RUNTIME,
            pid=4711 if live else None,
            memory_bytes=1 << 20,
            cpus=1,
            devices=[DeviceInfo(type="ivshmem", name="mmio0", size_bytes=DEVICE_BYTES)],
            created_at=self._created,
            started_at=None,
            stopped_at=None,
            exit=None,
            degraded=[],
            metrics=Metrics(
                start=_START,
                memory=MemoryMetrics(total_bytes=1 << 20, shared_bytes=0, private_bytes=4096, locked_bytes=0)
                if live
                else None,
            ),
        )


class FakeSupervisor:
    """``hold`` is waited for in the middle of each change; ``fault`` is raised by each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.events = EventHub()
        self.images = SimpleNamespace(
            figures=lambda: SimpleNamespace(images=1, resident_bytes=1 << 20, locked_bytes=4096)
        )
        self.memory = SimpleNamespace(
            sums=lambda: MemoryMetrics(total_bytes=1 << 20, shared_bytes=0, private_bytes=4096, locked_bytes=0),
            clones=lambda: SimpleNamespace(clones=1, private_bytes=4096, growth_bytes=8192, budget_bytes=1 << 30),
        )
        self.hold = asyncio.Event()
        self.hold.set()
        self.entered = asyncio.Event()
        self.fault: Exception | None = None
        self.not_ready: list[str] = []
        self.calls: list[str] = []
        self._instances: dict[str, FakeInstance] = {}

    async def close(self) -> None:
        self.events.close()
        for instance in self._instances.values():
            await instance.console.close(None)

    async def _change(self, what: str) -> None:
        self.entered.set()
        await self.hold.wait()
        if self.fault:
            raise self.fault
        self.calls.append(what)

    async def start(self, request: StartRequest) -> FakeInstance:
        await self._change("start")
        instance = await asyncio.to_thread(FakeInstance, self.directory, request)
        await instance.console.open()
        self._instances[instance.id] = instance
        self.events.publish("instance.starting", instance_id=instance.id, name=instance.name)
        return instance

    def instances(self) -> list[FakeInstance]:
        return list(self._instances.values())

    def find(self, key: str) -> FakeInstance:
        for instance in self._instances.values():
            if key in (instance.id, instance.name) or (len(key) >= 4 and instance.id.startswith(key)):
                return instance
        raise InstanceNotFound(f"no instance has the id or name {key!r}")

    async def stop(self, instance: FakeInstance, timeout_s: float | None) -> None:
        await self._change(f"stop {timeout_s}")
        if is_final(instance.state):
            raise WrongState("it has ended", status=instance.state)
        await instance.become(InstanceState.STOPPING)

    async def pause(self, instance: FakeInstance) -> None:
        await self._change("pause")
        await instance.become(InstanceState.PAUSED)

    async def resume(self, instance: FakeInstance) -> None:
        await self._change("resume")
        await instance.become(InstanceState.RUNNING)

    async def remove(self, instance: FakeInstance, *, force: bool) -> None:
        await self._change(f"remove {force}")
        if not force and not is_final(instance.state):
            raise WrongState("it lives", status=instance.state)
        await instance.console.close(None)
        del self._instances[instance.id]

    async def pull(self, reference: Reference, policy: str, *, resident: bool, verify: bool | None) -> Pulled:
        asked = {None: "", True: " verified", False: " unverified"}[verify]
        await self._change(f"pull {reference} {policy}{' resident' if resident else ''}{asked}")
        self.events.publish("pull.done", reference=str(reference))
        return Pulled(
            reference=reference,
            digest=Digest(DIGEST),
            index=None,
            network_bytes=3_000_000,
            resumed_bytes=10,
            there_bytes=5,
            blobs=4,
            total_ms=1000.0,
            resident_ms=1100.0 if resident else None,
            resident_bytes=1 << 28 if resident else None,
        )

    async def push(self, source: object, reference: Reference) -> Pushed:
        await self._change(f"push {source} {reference}")
        self.events.publish("push.done", reference=str(reference))
        return Pushed(
            reference=reference,
            digest=Digest(DIGEST),
            subject="pushed",
            signatures=0,
            sent_bytes=3_000_000,
            there_bytes=5,
            mounted_bytes=7,
            blobs=4,
            total_ms=1000.0,
        )

    async def snapshot(self, instance: FakeInstance, tag: str, *, push: bool | None = None) -> SnapshotReply:
        await self._change(f"snapshot {tag}" if push is None else f"snapshot {tag} {push}")
        return SnapshotReply(snapshot_ref=DIGEST, reference=f"demo:{tag}", pause_ms=4.5, phases={"save": 4.0})

    def inject_at_once(self, instance: FakeInstance, writes: list[MmioWrite]) -> list[bytes] | None:
        return None

    async def inject(self, instance: FakeInstance, writes: list[MmioWrite]) -> list[bytes]:
        await self._change("inject")
        read = []
        for write in writes:
            data = write.data if write.data is not None else (write.text or "").encode()
            end = write.offset + (write.read or len(data))
            if end > DEVICE_BYTES:
                raise OutOfRange(f"{end} is behind the device", size_bytes=DEVICE_BYTES)
            if write.read:
                read.append(bytes(instance.memory[write.offset : end]))
            else:
                instance.memory[write.offset : end] = data
        return read

    async def readiness(self) -> list[str]:
        return self.not_ready
