"""A driver whose machines are real processes that do nothing, with knobs for everything that can go wrong.

The process is real, so that pids, start times, exits and leaks are; the guest is a nonce in its RAM file and a state.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from anyio.to_thread import run_sync

from spec.compatibility import Compatibility, RestoreTarget
from spec.errors import InternalError, VmmExited, VmmGarbage, VmmRefused
from vmm.changed_pages import ChangedPages
from vmm.driver import Ending, Machine, MemoryUse, RuntimeName, RuntimeReport, SaveTarget, VmmFiles
from vmm.memory_counters import MemoryCounters, memory_counters
from vmm.pagemap import Extent
from vmm.process import VmmProcess

TARGET = RestoreTarget(
    runtime="qemu", version="7.2", machine_type="fake", accelerator="tcg", cpu_model="max", cpu_vendor="", cpu_flags=[]
)
FEATURES = frozenset({"ivshmem", "restore", "snapshot", "snapshot-in-place"})


@dataclass
class Guest:
    """What the machines have inside, by pid: it outlives the objects of one daemon."""

    nonce: str
    going: bool = False
    machine: Machine | None = None
    powers_off: bool = True


@dataclass
class FakeDriver:
    """See :class:`vmm.driver.Driver`."""

    name: RuntimeName = "qemu"
    features: frozenset[str] = FEATURES
    target: RestoreTarget = TARGET
    usable: bool = True
    saves_in_place: bool = True
    faults: dict[str, str] = field(default_factory=dict)
    """By step (``spawn``, ``boot``, ``restore``, ``pause``, ``resume``, ``save``, ``complete``, ``attach``, ``stop``):
    ``refuse``, ``hang up``, ``die`` or ``hang``; each strikes once, a hang until :meth:`release`."""
    guests: dict[int, Guest] = field(default_factory=dict)
    spawned: list[FakeVm] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a step hangs."""
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def probe(self) -> RuntimeReport:
        return RuntimeReport(
            name=self.name, usable=self.usable, binary=Path("/bin/sleep"), target=self.target, features=self.features
        )

    async def spawn(self, machine: Machine, files: VmmFiles, *, incoming: bool) -> FakeVm:
        await self.strike("spawn", None)
        await run_sync((files.directory / f"fake-{files.generation}.sock").touch)
        process = VmmProcess.spawn(
            ["sleep", "infinity"], stdout=files.console, stderr=files.log
        )  # no wait from here on
        vm = FakeVm(self, process, machine, files)
        self.guests[vm.pid] = Guest(nonce="", machine=machine)
        self.spawned.append(vm)
        return vm

    async def attach(self, machine: Machine, files: VmmFiles, pid: int) -> FakeVm:
        await self.strike("attach", None)
        vm = FakeVm(self, VmmProcess.attach(pid), machine, files)
        self.spawned.append(vm)
        return vm

    async def strike(self, step: str, vm: FakeVm | None) -> None:
        self.calls.append(step)
        match self.faults.pop(step, None):
            case "refuse":
                raise VmmRefused(f"{step}: the fake refuses")
            case "hang up":
                raise VmmGarbage(f"{step}: the fake hangs up")
            case "die" if vm is not None:
                vm.process.signal(signal.SIGKILL)
                raise await vm.process.exit_error(step)
            case "hang":
                self.hanging.set()
                await self.released.wait()


class FakeVm:
    """See :class:`vmm.driver.Vm`."""

    def __init__(self, driver: FakeDriver, process: VmmProcess, machine: Machine, files: VmmFiles) -> None:
        self.driver = driver
        self.process = process
        self.files = files
        self._machine = machine
        self._guest_ending: str | None = None
        self.resumed_at: float | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def machine(self) -> Machine:
        return self._machine

    @property
    def guest(self) -> Guest:
        return self.driver.guests[self.pid]

    async def boot(self) -> None:
        await self.driver.strike("boot", self)
        self.guest.nonce = os.urandom(4).hex()
        ram = self._machine.ram
        assert not ram.private
        await run_sync(_write_ram, ram.path, ram.size_bytes, self.guest.nonce, b"what else is in RAM" * 2000)
        await run_sync(self.say, f"boot nonce={self.guest.nonce}")
        self.guest.going = True

    async def restore(self, state_dir: Path, *, resume: bool) -> None:
        await self.driver.strike("restore", self)
        state = json.loads(await run_sync((state_dir / "devices").read_bytes))
        assert self._machine.ram.private
        content = await run_sync(_read_ram, self._machine.ram.path)
        if content != state["nonce"]:
            raise InternalError(f"RAM has {content!r}, the device state {state['nonce']!r}")
        self.guest.nonce = state["nonce"]
        await run_sync(self.say, f"restored nonce={self.guest.nonce}")
        self.guest.going = resume
        self.resumed_at = time.monotonic() if resume else None

    async def pause(self) -> None:
        await self.driver.strike("pause", self)
        self._check_alive()
        self.guest.going = False

    async def resume(self) -> None:
        await self.driver.strike("resume", self)
        self._check_alive()
        self.guest.going = True
        self.resumed_at = time.monotonic()

    async def expect_resume(self) -> None:
        pass

    async def save(self, target: SaveTarget) -> FakeSaved:
        await self.driver.strike("save", self)
        assert not self.guest.going, "saved while running"
        assert sorted(await run_sync(os.listdir, target.state_dir)) == [], "the state directory is not empty"
        await run_sync((target.state_dir / "devices").write_text, json.dumps({"nonce": self.guest.nonce}))
        in_place = self._machine.ram.private and self.driver.saves_in_place
        if in_place and target.overlays:
            self._machine = replace(self._machine, disks=target.overlays)
        return await run_sync(FakeSaved, self, in_place, target)

    def memory_counters(self) -> MemoryCounters:
        return memory_counters(self.process.pid)

    @property
    def unconfined(self) -> tuple[tuple[str, str], ...]:
        return ()

    async def memory_use(self) -> MemoryUse:
        return MemoryUse(image_shared_bytes=4096, ram_private_bytes=8192, process_private_bytes=12288)

    async def stop(self, *, guest_grace_s: float) -> Ending:
        await self.driver.strike("stop", self)
        if guest_grace_s and self.guest.going and self.guest.powers_off and self.process.exited is None:
            self.power_off()
        await self.process.kill_ladder([self.process.signal_rung(signal.SIGTERM, 5.0)])
        return await self.wait_ended()

    async def wait_ended(self) -> Ending:
        code, signum = await self.process.wait()
        await run_sync(lambda: (self.files.directory / f"fake-{self.files.generation}.sock").unlink(missing_ok=True))
        if self._guest_ending == "shutdown":
            return Ending(code=0, signal=None, guest="shutdown")
        return Ending(code=code, signal=signum, guest="panic" if self._guest_ending == "panic" else None)

    async def detach(self) -> None:
        self.process.release()

    # --- what a guest, or somebody outside, does -----------------------------------------------------------------

    def say(self, line: str) -> None:
        with self.files.console.open("ab") as console:
            console.write(line.encode() + b"\n")

    def power_off(self) -> None:
        self._guest_ending = "shutdown"
        self.process.signal(signal.SIGTERM)

    def panic(self) -> None:
        self.say("Kernel panic - not syncing")
        self._guest_ending = "panic"
        self.process.signal(signal.SIGTERM)

    def crash(self, signum: int = signal.SIGSEGV) -> None:
        self.process.signal(signum)

    def _check_alive(self) -> None:
        if self.process.exited is not None:
            raise VmmExited("the fake is dead")


class FakeSaved:
    """See :class:`vmm.driver.Saved`."""

    def __init__(self, vm: FakeVm, in_place: bool, into: SaveTarget) -> None:
        self.in_place = in_place
        self._vm = vm
        target, machine = vm.driver.target, vm.machine
        self.compatibility = Compatibility(
            runtime=target.runtime,
            version=target.version,
            machine_type=target.machine_type,
            accelerator=target.accelerator,
            cpu_model=target.cpu_model,
            memory_bytes=machine.ram.size_bytes,
            cpus=machine.cpus,
            regions=[],
        )
        self.changes = _changed(vm, into) if machine.ram.private else None

    async def complete(self, image: Path) -> None:
        await self._vm.driver.strike("complete", self._vm)
        ram = self._vm.machine.ram
        assert not image.exists()
        if ram.private:
            await run_sync(_write_ram, image, ram.size_bytes, self._vm.guest.nonce)


def _changed(vm: FakeVm, into: SaveTarget) -> ChangedPages:
    """The page with the nonce, as if the guest had written to it."""
    ram, copy = vm.machine.ram, into.image or into.state_dir.with_name("changed-pages")
    if into.image is not None:
        assert _read_ram(copy) == vm.guest.nonce
    else:
        _write_ram(copy, ram.size_bytes, vm.guest.nonce)
    return ChangedPages(ram.path, copy, [Extent(ram.size_bytes // 2, 4096)], whole=into.image is not None)


def _write_ram(path: Path, size_bytes: int, nonce: str, content: bytes = b"") -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.truncate(fd, size_bytes)
        os.pwrite(fd, nonce.encode(), size_bytes // 2)
        os.pwrite(fd, content, 0)
    finally:
        os.close(fd)


def _read_ram(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return file.read(8).decode()
