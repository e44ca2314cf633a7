"""One QEMU process and the machine in it."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any, TypeVar

from anyio import CancelScope
from anyio.to_thread import run_sync

from spec.compatibility import Compatibility
from spec.errors import VmmGarbage, VmmRefused
from vmm import smaps
from vmm.changed_pages import capture
from vmm.driver import Confinement, Ending, Machine, MemoryUse, SaveTarget
from vmm.memory_counters import MemoryCounters, memory_counters
from vmm.process import Rung, VmmProcess
from vmm.qemu.board import device_records, memory_regions
from vmm.qemu.installation import Installation
from vmm.qemu.live_disks import put_overlays
from vmm.qemu.monitor import Monitor
from vmm.qemu.snapshot import STATE_FILE, QemuSaved, open_state, write_board
from vmm.sandbox import ownership

T = TypeVar("T")

_CALL_LIMIT_S = 10.0
_LOAD_LIMIT_S = 30.0
_QUIT_LIMIT_S = 5.0
"""A quit writes back what disks have in QEMU's caches."""
_TERMINATE_LIMIT_S = 2.0
_EVENTS_LIMIT_S = 1.0

_FIRMWARE_LIMIT_S = 20.0
_FIRMWARE_TURN_S = 0.02
_CR0 = re.compile(r"CR0=([0-9a-f]{8})")
_PAGING = 1 << 31


class QemuVm:
    """See :class:`vmm.driver.Vm`."""

    def __init__(
        self,
        process: VmmProcess,
        monitor: Monitor,
        machine: Machine,
        installation: Installation,
        socket: Path,
        confinement: Confinement | None = None,
    ) -> None:
        self._process = process
        self._monitor = monitor
        self._machine = machine
        self._installation = installation
        self._socket = socket
        self._uid = confinement.uid if confinement else None
        self._superseded = False
        self.resumed_at: float | None = None
        self._concluding = asyncio.Lock()

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
        """What it runs, with the overlays of its latest save in place."""
        return self._machine

    async def boot(self) -> None:
        """Let the vCPUs begin: QEMU has read kernel and initrd when it started."""
        await self._command("cont")

    async def restore(self, state_dir: Path, *, resume: bool) -> None:
        """Load the device state, prove that RAM is a private mapping, and only then let the vCPUs go."""
        state = await run_sync(open_state, self._machine, state_dir)
        try:
            await self._race(
                self._load(state, state_dir / STATE_FILE), "confirmation that the device state is loaded", _LOAD_LIMIT_S
            )
        finally:
            os.close(state)
        await run_sync(smaps.prove_private, self.pid, self._machine.ram)
        if resume:
            await self.resume()

    async def pause(self) -> None:
        """Stop the vCPUs; when it returns, no request to a disk is under way."""
        await self._command("stop")

    async def resume(self) -> None:
        """Let the vCPUs go on, also after a save whose snapshot was given up."""
        await self._command("cont")
        self.resumed_at = time.monotonic()
        self._superseded = False

    async def expect_resume(self) -> None:
        """Nothing to do: the connection stands."""

    async def save(self, target: SaveTarget) -> QemuSaved:
        """Write device state, and of a private RAM the pages that the machine changed.

        The state is written by the command for Xen, the only one that leaves out RAM however it is mapped. With
        ``live`` it also gives up the disks, which a successor could not lock otherwise.
        """
        await self._leave_firmware()
        in_place = self._machine.ram.private
        state_file = (target.state_dir / STATE_FILE).absolute()
        await self._save_devices(target.state_dir, state_file, live=not in_place)
        await run_sync(write_board, self._machine, target.state_dir)
        compatibility = self._compatibility()
        if not in_place:
            self._superseded = True
            return QemuSaved(compatibility)
        changes = await run_sync(capture, self.pid, self._machine.ram, target)
        try:
            if self._uid is not None:
                for overlay in target.overlays:
                    await run_sync(ownership.give, overlay.path, self._uid)
            disks = await put_overlays(self._command, self._machine.disks, target.overlays)
        except BaseException:
            with CancelScope(shield=True):
                await run_sync(changes.discard)
            raise
        self._machine = replace(self._machine, disks=disks)
        return QemuSaved(compatibility, changes)

    async def _save_devices(self, state_dir: Path, state_file: Path, *, live: bool) -> None:
        if self._uid is not None:
            await run_sync(ownership.lend_directory, state_dir, self._uid)
        try:
            await self._command("xen-save-devices-state", {"filename": str(state_file), "live": live})
        finally:
            if self._uid is not None:
                with CancelScope(shield=True):
                    await run_sync(ownership.take_directory_back, state_dir)

    async def memory_use(self) -> MemoryUse:
        """The kernel's figures."""
        return await run_sync(smaps.memory_use, self.pid, self._machine.ram)

    def memory_counters(self) -> MemoryCounters:
        """The kernel's counters."""
        return memory_counters(self.pid)

    async def stop(self, *, guest_grace_s: float) -> Ending:
        """Power button, quit, SIGTERM, SIGKILL; at once SIGKILL for a machine that a successor has continued.

        That one may not write a byte more, and has nothing unwritten: its disks were flushed and given up at the save.
        """
        rungs: list[Rung] = []
        if not self._superseded:
            if guest_grace_s > 0:
                rungs.append(Rung("power button", self._press_power_button, guest_grace_s))
            rungs.append(Rung("quit", lambda: self._ask("quit"), _QUIT_LIMIT_S))
            rungs.append(self._process.signal_rung(Signals.SIGTERM, _TERMINATE_LIMIT_S))
        try:
            await self._process.kill_ladder(rungs)
        finally:
            with CancelScope(shield=True):  # a cancelled stop, too, leaves no connection and no socket
                ending = await self.wait_ended()
        return ending

    async def wait_ended(self) -> Ending:
        """Wait for the exit, take in the last events, and remove the process's socket."""
        code, signal = await self._process.wait()
        async with self._concluding:
            with suppress(TimeoutError):
                async with asyncio.timeout(_EVENTS_LIMIT_S):
                    await self._monitor.drained()
            await self._monitor.close()
            await run_sync(lambda: self._socket.unlink(missing_ok=True))
        return Ending(code=code, signal=signal, guest=self._monitor.guest_ending)

    async def detach(self) -> None:
        """Close the connection, so that a later daemon can make its own, and watch the process no more."""
        await self._monitor.close()
        self._process.release()

    async def _load(self, state: int, path: Path) -> None:
        if self._installation.loads_state_by_path:
            file = {"transport": "file", "filename": str(path.absolute()), "offset": 0}
            await self._monitor.load({"channels": [{"channel-type": "main", "addr": file}]})
        else:
            await self._monitor.send_file("state", state)
            await self._monitor.load({"uri": "fd:state"})

    async def _leave_firmware(self) -> None:
        """Let a paused machine run on until a kernel has switched on paging, if it hasn't yet.

        A successor has no kernel to give to the firmware, which is done with it by then (command_line). Firmware
        takes a fraction of a second, and nobody sees the moment of a snapshot within it. A clone has left it long ago.
        """
        if self._machine.ram.private:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _FIRMWARE_LIMIT_S
        while not await self._paging():
            if loop.time() > deadline:
                raise VmmRefused(
                    "the guest has not switched on paging: it is still in its firmware, or no kernel of ours",
                    remedy="Take the snapshot when the guest's kernel runs.",
                )
            await self._command("cont")
            try:
                await asyncio.sleep(_FIRMWARE_TURN_S)
            finally:
                with CancelScope(shield=True):
                    await self._command("stop")

    async def _paging(self) -> bool:
        registers = await self._command("human-monitor-command", {"command-line": "info registers"})
        match = _CR0.search(str(registers))
        if match is None:
            raise VmmGarbage("QEMU's 'info registers' shows no CR0")
        return bool(int(match[1], 16) & _PAGING)

    def _compatibility(self) -> Compatibility:
        """Of the running process: the binary may have been replaced since it started."""
        made = self._installation.target(self._monitor.version)
        return Compatibility(
            runtime=made.runtime,
            version=made.version,
            machine_type=made.machine_type,
            accelerator=made.accelerator,
            cpu_model=made.cpu_model,
            cpu_vendor=made.cpu_vendor,
            cpu_flags=made.cpu_flags,
            memory_bytes=self._machine.ram.size_bytes,
            cpus=self._machine.cpus,
            regions=memory_regions(self._machine.ram.size_bytes),
            devices=device_records(self._machine),
        )

    async def _press_power_button(self) -> None:
        status = await self._monitor.execute("query-status")
        if not status.get("running"):
            raise VmmRefused("a guest that does not run can't power itself off")
        await self._monitor.execute("system_powerdown")

    async def _ask(self, command: str) -> None:
        await self._monitor.execute(command)

    async def _command(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        return await self._race(self._monitor.execute(command, arguments), f"reply to {command}", _CALL_LIMIT_S)

    async def _race(self, call: Awaitable[T], what: str, limit_s: float) -> T:
        return await self._process.until_ready(call, limit_s=limit_s, what=what)
