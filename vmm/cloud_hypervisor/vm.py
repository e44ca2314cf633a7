"""One Cloud Hypervisor process and the machine in it."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import TypeVar

from anyio import CancelScope
from anyio.to_thread import run_sync

from spec.compatibility import Compatibility, MemoryRegion
from spec.errors import VmmGarbage, VmmRefused
from vmm import smaps
from vmm.changed_pages import ChangedPages, capture
from vmm.cloud_hypervisor import snapshot
from vmm.cloud_hypervisor.api import Api
from vmm.cloud_hypervisor.config import device_records, vm_config
from vmm.cloud_hypervisor.events import EventReader, GuestEnding
from vmm.cloud_hypervisor.probe import restore_target
from vmm.cpu import host_cpu
from vmm.driver import Confinement, Ending, Machine, MemoryUse, SaveTarget, VmmFiles
from vmm.memory_counters import MemoryCounters, memory_counters
from vmm.process import Rung, VmmProcess
from vmm.sandbox import ownership

T = TypeVar("T")

_CALL_LIMIT_S = 10.0
_BOOT_LIMIT_S = 60.0
"""Creating a machine reads kernel and initrd, and reserves its memory."""
_RESTORE_LIMIT_S = 30.0
_QUIT_LIMIT_S = 5.0
_TERMINATE_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class ProcessFiles:
    """The names of one process's own files; all go with it."""

    socket: Path
    events: Path
    restore: Path
    """The directory that vm.restore reads: this clone's config.json, and a link to the shared state.json."""

    @classmethod
    def of(cls, files: VmmFiles) -> ProcessFiles:
        """The names in the instance's directory."""
        stem = f"cloud-hypervisor-{files.generation}"
        return cls(
            socket=files.directory / f"{stem}.sock",
            events=files.directory / f"{stem}.events",
            restore=files.directory / "restore" / f"{files.generation}",
        )

    def remove(self) -> None:
        """Remove what is there; blocks."""
        self.socket.unlink(missing_ok=True)
        self.events.unlink(missing_ok=True)
        shutil.rmtree(self.restore, ignore_errors=True)
        with suppress(OSError):  # a successor has its own in it
            self.restore.parent.rmdir()


class CloudHypervisorVm:
    """See :class:`vmm.driver.Vm`."""

    def __init__(
        self,
        process: VmmProcess,
        machine: Machine,
        files: ProcessFiles,
        confinement: Confinement | None = None,
        *,
        unused_ram: Path | None = None,
    ) -> None:
        """``unused_ram``: a RAM file that was made for a boot, and goes with the process if that fails."""
        self._process = process
        self._machine = machine
        self._files = files
        self._uid = confinement.uid if confinement else None
        self._api = Api(files.socket)
        self._unused_ram = unused_ram
        self._told_to_quit = False
        self._events = EventReader(files.events, self._guest_ended)
        self._concluded = False
        self._concluding = asyncio.Lock()
        self._version_of_process = ""
        self.resumed_at: float | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def unconfined(self) -> tuple[tuple[str, str], ...]:
        """Told by the launcher; nothing of a process that was taken over."""
        return self._process.unconfined

    @property
    def machine(self) -> Machine:
        """What it runs."""
        return self._machine

    async def boot(self) -> None:
        """Boot from the kernel; the RAM file, made with the process, goes again if that fails."""
        try:
            await self._call("vm.create", vm_config(self._machine), limit_s=_BOOT_LIMIT_S)
            await self._call("vm.boot", limit_s=_BOOT_LIMIT_S)
        except BaseException:
            with CancelScope(shield=True):
                await run_sync(self._remove_unused_ram)
            raise
        self._unused_ram = None

    async def restore(self, state_dir: Path, *, resume: bool) -> None:
        """Continue from a snapshot in one call, and prove then that RAM is mapped and not copied.

        The image is safe from the machine before the proof: a zone that is not shared is opened read-only.
        """
        await run_sync(snapshot.prepare_restore, self._machine, state_dir, self._files.restore)
        source = {"source_url": f"file://{self._files.restore}", "resume": resume}
        await self._call("vm.restore", source, limit_s=_RESTORE_LIMIT_S)
        if resume:
            self.resumed_at = time.monotonic()
        await run_sync(self._check_restored)

    async def pause(self) -> None:
        """Stop the vCPUs."""
        await self._call("vm.pause")

    async def resume(self) -> None:
        """Let the vCPUs go on."""
        await self._call("vm.resume")
        self.resumed_at = time.monotonic()

    async def expect_resume(self) -> None:
        """Connect beforehand."""
        await self._api.connect()

    async def save(self, target: SaveTarget) -> CloudHypervisorSaved:
        """Write the device state, and copy what a clone changed of its RAM: nothing here grows with the RAM's size.

        A clone goes on in place, unless it is to have another overlay: Cloud Hypervisor can't exchange the file of a
        disk.
        """
        ram, state_dir = self._machine.ram, target.state_dir
        version = await self._version()
        regions = await self._save_devices(state_dir)
        changes = await run_sync(capture, self.pid, ram, target) if ram.private else None
        in_place = ram.private and not target.overlays
        return CloudHypervisorSaved(_compatibility(self._machine, version, regions), in_place, changes)

    async def _save_devices(self, state_dir: Path) -> list[MemoryRegion]:
        expected: VmmRefused | None = None
        if self._machine.ram.private:
            await run_sync(snapshot.refuse_ram_copy, state_dir)
        if self._uid is not None:
            await run_sync(ownership.lend_directory, state_dir, self._uid)
        try:
            await self._call("vm.snapshot", {"destination_url": f"file://{state_dir}"})
        except VmmRefused as error:
            if not self._machine.ram.private:
                raise
            expected = error  # unless the device state is not there
        finally:
            if self._uid is not None:
                with CancelScope(shield=True):
                    await run_sync(ownership.take_directory_back, state_dir)
        try:
            return await run_sync(snapshot.tidy, self._machine, state_dir)
        except VmmGarbage as error:
            raise expected or error from error

    async def memory_use(self) -> MemoryUse:
        """The kernel's figures."""
        return await run_sync(smaps.memory_use, self.pid, self._machine.ram)

    def memory_counters(self) -> MemoryCounters:
        """The kernel's counters."""
        return memory_counters(self.pid)

    async def stop(self, *, guest_grace_s: float) -> Ending:
        """Power button, vmm.shutdown, SIGTERM, SIGKILL."""
        rungs = [
            Rung("vmm.shutdown", self._quit, _QUIT_LIMIT_S),
            self._process.signal_rung(Signals.SIGTERM, _TERMINATE_LIMIT_S),
        ]
        if guest_grace_s > 0:
            rungs.insert(0, Rung("power button", self._press_power_button, guest_grace_s))
        try:
            await self._process.kill_ladder(rungs)
        except BaseException:
            with CancelScope(shield=True):  # a cancelled stop, too, leaves no process and no file
                await run_sync(self._remove_files)
            raise
        return await self.wait_ended()

    async def wait_ended(self) -> Ending:
        """Wait for the exit, read the last of what the events say of the guest, and remove the process's files."""
        code, signal = await self._process.wait()
        self._api.close()
        async with self._concluding:
            if not self._concluded:
                self._events.finish()
                await run_sync(self._remove_files)
                self._concluded = True
        guest = self._events.ending
        by_request = self._told_to_quit and guest == "shutdown"
        return Ending(code=code, signal=signal, guest=None if by_request else guest)

    async def detach(self) -> None:
        """Watch the process no more; a connection lasts only as long as a call."""
        self._api.close()
        self._events.close()
        self._process.release()

    def _check_restored(self) -> None:
        smaps.prove_private(self.pid, self._machine.ram)
        shutil.rmtree(self._files.restore, ignore_errors=True)  # where something failed, the end of the process does it

    def _guest_ended(self, how: GuestEnding) -> None:
        """The VMM boots a guest again that resets itself, and keeps one that panicked: both have ended, for us.

        Else a guest that triple-faults as soon as it boots would do so for ever; and QEMU does it like that.
        """
        if how != "shutdown":
            self._process.signal(Signals.SIGKILL)

    def _remove_files(self) -> None:
        self._files.remove()
        self._remove_unused_ram()

    def _remove_unused_ram(self) -> None:
        if self._unused_ram is not None:
            self._unused_ram.unlink(missing_ok=True)

    async def _press_power_button(self) -> None:
        """Only a guest that runs can hear it; for any other the ladder goes on at once."""
        state = (await self._api.get("vm.info")).get("state")
        if state != "Running":
            raise VmmRefused(f"the machine is {state}")
        await self._api.put("vm.power-button")

    async def _quit(self) -> None:
        self._told_to_quit = True
        await self._api.put("vmm.shutdown")

    async def _call(self, command: str, body: object = None, *, limit_s: float | None = None) -> None:
        """A refusal is raised at once: who answers lives, while the race takes an error for a sign of an exit."""

        async def ask() -> VmmRefused | None:
            try:
                await self._api.put(command, body)
            except VmmRefused as refusal:
                return refusal
            return None

        refusal = await self._race(ask(), command, limit_s or _CALL_LIMIT_S)
        if refusal is not None:
            raise refusal

    async def answers(self) -> None:
        """Wait until it takes commands. Raises VmmExited, VmmTimeout, VmmGarbage."""
        await self._version()

    async def _version(self) -> str:
        """The version of the running process, which the binary on disk may have been replaced under."""
        if self._version_of_process:
            return self._version_of_process
        reply = await self._race(self._api.get("vmm.ping"), "vmm.ping", _CALL_LIMIT_S)
        version = reply.get("build_version")
        if not isinstance(version, str):
            raise VmmGarbage("the reply to vmm.ping has no build_version")
        self._version_of_process = version
        return version

    async def _race(self, call: Awaitable[T], command: str, limit_s: float) -> T:
        return await self._process.until_ready(call, limit_s=limit_s, what=f"reply to {command}")


@dataclass(frozen=True, slots=True)
class CloudHypervisorSaved:
    """See :class:`vmm.driver.Saved`. ``changes`` are there exactly for a machine with private RAM."""

    compatibility: Compatibility
    in_place: bool
    changes: ChangedPages | None

    async def complete(self, image: Path) -> None:
        """Make the image of changed pages and parent image."""
        if self.changes is not None:
            await run_sync(self.changes.complete, image)


def _compatibility(machine: Machine, version: str, regions: list[MemoryRegion]) -> Compatibility:
    target = restore_target(version, host_cpu())
    return Compatibility(
        runtime=target.runtime,
        version=target.version,
        machine_type=target.machine_type,
        accelerator=target.accelerator,
        cpu_model=target.cpu_model,
        cpu_vendor=target.cpu_vendor,
        cpu_flags=target.cpu_flags,
        memory_bytes=machine.ram.size_bytes,
        cpus=machine.cpus,
        regions=regions,
        devices=device_records(machine),
    )
