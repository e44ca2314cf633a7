"""A host for machines in directories of its own, with fake or real VMMs, and a count of everything that may be left."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cache.pack import PackRequest, pack
from cache.resident import ResidentImages
from cache.store import Store
from ovms_supervisor.config import Settings
from ovms_supervisor.instance import Instance
from ovms_supervisor.instance.adoption import Progress
from ovms_supervisor.instance.process_identity import processes_of
from ovms_supervisor.supervisor import Supervisor
from spec.api import Overrides, StartRequest
from spec.instance import InstanceState, is_live
from spec.manifest import Device
from spec.reference import parse_reference
from spec.sizes import MIB
from tests.supervisor.fake_vmm import FakeDriver, FakeVm
from vmm.driver import Driver, RuntimeName
from vmm.sandbox.launching import Launcher

GUEST_SOURCE = Path(__file__).parents[1] / "guest"
GUEST_MEMORY = 32 * MIB
DISK_BYTES = MIB
KEPT = {"journal.json", "console.log", "console.index", "vmm.log"}


@pytest.fixture(scope="session")
def guest_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test guest (tests/guest/guest.S) as a PVH ELF."""
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("the test guest is built with GNU binutils, which are not installed")
    kernel = tmp_path_factory.mktemp("guest") / "guest.elf"
    subprocess.run([GUEST_SOURCE / "build", kernel], check=True, timeout=30)
    return kernel


@dataclass
class Site:
    """The directories of one host, and daemons on it, one after the other."""

    directory: Path
    kernel: Path
    fake: FakeDriver = field(default_factory=FakeDriver)
    drivers: Mapping[RuntimeName, Driver] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.drivers:
            self.drivers = {"qemu": self.fake}
        store = Store(self.directory / "root")
        store.create()
        self.pack(store, "guest:plain")
        self.pack(store, "guest:shm", devices=(Device(type="ivshmem", name="mmio0", size=64 * 1024),))
        disk = self.directory / "disk.raw"
        disk.write_bytes(os.urandom(4096) + bytes(DISK_BYTES - 4096))
        self.pack(store, "guest:disk", disks=(disk,))
        store.close()

    def pack(self, store: Store, name: str, *, disks: tuple[Path, ...] = (), devices: tuple[Device, ...] = ()) -> None:
        pack(
            store,
            PackRequest(
                name=parse_reference(name),
                kernel=self.kernel,
                disks=disks,
                devices=devices,
                memory_bytes=GUEST_MEMORY,
                cpus=1,
            ),
        )

    def settings(self, **changes: object) -> Settings:
        values = {
            "root": self.directory / "root",
            "run_dir": self.directory / "run",
            "socket": self.directory / "run" / "ovms.sock",
            "image_dir": self.directory / "images",
            "image_budget_bytes": 1 << 30,
            "warm_reserve_bytes": 0,
            "clone_budget_bytes": 1 << 40,
            "stop_grace_s": 2.0,
            "on_exit": "stop",
            **changes,
        }
        return Settings(**values)  # type: ignore[arg-type]

    @asynccontextmanager
    async def daemon(
        self,
        *,
        progress: Progress = lambda _done, _of: None,
        launcher: Launcher | None = None,
        **changes: object,
    ) -> AsyncIterator[Supervisor]:
        settings = self.settings(**changes)
        store = Store(settings.root)
        images = ResidentImages(settings.image_dir, mlock=settings.mlock, blob_path=store.blob_path)
        await images.open()
        try:
            async with Supervisor(
                settings, self.drivers, store, images, launcher=launcher, progress=progress
            ) as supervisor:
                yield supervisor
        finally:
            await images.close()
            await asyncio.to_thread(store.close)

    def vm(self, instance: Instance) -> FakeVm:
        vm = instance.vm
        assert isinstance(vm, FakeVm)
        return vm

    # --- the audit ------------------------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        return processes_of(self.directory / "run" / "instances")

    async def leaks(self, instances: list[Instance]) -> list[str]:
        """Everything on this host that no live instance accounts for, and that does not go within some seconds.

        What goes by itself are images that are loaded ahead.
        """
        for _ in range(100):
            left = await asyncio.to_thread(self._leaks, instances)
            if not left:
                break
            await asyncio.sleep(0.05)
        return left

    def _leaks(self, instances: list[Instance]) -> list[str]:
        live = {each.id: each for each in instances if is_live(each.state)}
        listed = {each.id for each in instances}
        root, run, images = self.directory / "root", self.directory / "run", self.directory / "images"
        pids = {each.vm.pid for each in live.values() if each.vm is not None}
        left = [f"process {pid} of {owner}" for pid, owner in self.processes().items() if pid not in pids]
        for parent in (images / "instances", root / "instances"):
            left += [str(path) for path in _entries(parent) if path.name not in live]
        for path in _entries(run / "instances"):
            if path.name not in listed:
                left.append(str(path))
            elif path.name not in live:
                left += [str(entry) for entry in _entries(path) if entry.name not in KEPT]
        left += [str(path) for path in _entries(images / ".staging")]
        left += [str(path) for path in _entries(root / "storing")]
        left += [str(path) for path in _entries(root / "ovms.blobs" / "tmp")]
        claims = {path.stem.removeprefix("instance-"): path for path in _entries(root / "ovms.blobs" / "claims")}
        left += [str(path) for owner, path in claims.items() if owner not in listed and not owner.startswith("disk-")]
        return left


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.exists() else []


@pytest.fixture
def site(tmpfs_dir: Path, guest_kernel: Path) -> Iterator[Site]:
    site = Site(tmpfs_dir, guest_kernel)
    yield site
    for pid in site.processes():  # of a test that failed
        os.kill(pid, 9)


async def start(
    supervisor: Supervisor,
    manifest: str = "guest:plain",
    *,
    wait: InstanceState | None = InstanceState.RUNNING,
    **overrides: object,
) -> Instance:
    """Start and wait; the state that was reached is the instance's."""
    request = StartRequest(manifest=manifest, overrides=Overrides(**overrides))  # type: ignore[arg-type]
    instance = await supervisor.start(request)
    if wait is not None:
        await instance.wait_for(wait)
    return instance


async def ended(instance: Instance) -> InstanceState:
    """Wait until the instance has ended and everything was given back."""
    return await instance.wait_for(InstanceState.STOPPED, InstanceState.FAILED)
