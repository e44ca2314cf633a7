"""The driver: finds QEMU, starts processes of it, and takes over running ones."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

from anyio import CancelScope
from anyio.to_thread import run_sync

from spec.errors import FileMissing, MissingTool, PermissionMissing
from vmm import ram_file, unix_socket
from vmm.driver import Confinement, Machine, Ram, RuntimeName, RuntimeReport, VmmFiles
from vmm.process import VmmProcess
from vmm.qemu.block_graph import disk_node
from vmm.qemu.board import disk_id
from vmm.qemu.command_line import Descriptors, command_line
from vmm.qemu.installation import BINARY, Installation, find, report, report_missing
from vmm.qemu.monitor import Monitor
from vmm.qemu.vm import QemuVm
from vmm.sandbox.launching import Launcher
from vmm.sandbox.spawning import spawn_vmm

_START_LIMIT_S = 30.0
"""QEMU answers after some ten milliseconds; a host that starts hundreds at once takes longer."""


class Qemu:
    """See :class:`vmm.driver.Driver`."""

    name: RuntimeName = "qemu"

    def __init__(self, binary: Path | None = None, launcher: Launcher | None = None) -> None:
        """``launcher`` makes the processes whose files ask for confinement."""
        self._binary = binary
        self._launcher = launcher
        self._found: tuple[tuple[int, int], Installation] | None = None

    async def probe(self) -> RuntimeReport:
        """Runs the binary for its version and machine types, and looks at /dev/kvm and the CPU flags."""
        try:
            return report(await run_sync(self._find))
        except MissingTool as error:
            return report_missing(error)

    async def spawn(self, machine: Machine, files: VmmFiles, *, incoming: bool) -> QemuVm:
        """Start a process that stands before its first instruction. A RAM file of its own is made here.

        The control socket listens before the process runs, so there is no readiness to wait for but the greeting.
        """
        installation = await self._installation()
        disks = await run_sync(_prepare, machine, installation)
        made: list[Path] = []
        try:
            if not machine.ram.private:
                ram_file.create(machine.ram)
                made.append(machine.ram.path)
            address = _socket(files)
            listener = _listen(address)
            made.append(address)
            with listener, files.console.open("ab") as console:
                # QEMU has its own of both then: should it die, waiting connections break.
                fds = Descriptors(qmp=listener.fileno(), console=console.fileno())
                argv = command_line(installation, machine, files, disks=disks, fds=fds, incoming=incoming)
                process = await spawn_vmm(
                    argv,
                    machine,
                    files,
                    self._launcher,
                    pass_fds=[fds.qmp, fds.console],
                    writes_image=not installation.maps_read_only_images,
                )
            try:
                return await _connected(process, machine, installation, address, files.confinement)
            except BaseException:
                with CancelScope(shield=True):
                    await process.kill_ladder(())
                raise
        except BaseException:
            with CancelScope(shield=True):
                await run_sync(_remove, made)
            raise

    async def attach(self, machine: Machine, files: VmmFiles, pid: int) -> QemuVm:
        """Take over a process by the socket in its instance's directory. Raises VmmExited, VmmTimeout, VmmGarbage."""
        installation = await self._installation()
        process = VmmProcess.attach(pid, name=BINARY, log=files.log)
        try:
            return await _connected(process, machine, installation, _socket(files), files.confinement)
        except BaseException:
            process.release()
            raise

    async def _installation(self) -> Installation:
        """What was found the last time, unless the binary has been replaced since. Raises MissingTool."""
        if self._found is not None:
            inode, found = self._found
            if inode == _inode(found.binary):
                return found
        return await run_sync(self._find)

    def _find(self) -> Installation:
        """Look for it. Blocks. Raises MissingTool."""
        found = find(self._binary)
        self._found = (_inode(found.binary), found)
        return found


async def _connected(
    process: VmmProcess,
    machine: Machine,
    installation: Installation,
    socket: Path,
    confinement: Confinement | None,
) -> QemuVm:
    greeting = Monitor.connect(socket)
    monitor = await process.until_ready(greeting, limit_s=_START_LIMIT_S, what="QMP greeting")
    return QemuVm(process, monitor, machine, installation, socket, confinement)


def _socket(files: VmmFiles) -> Path:
    return files.directory / f"qemu-{files.generation}.sock"


def _listen(path: Path) -> socket.socket:
    try:
        return unix_socket.listen(path)
    except OSError as error:
        raise FileMissing(f"cannot prepare {path}: {error.strerror}") from error


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _inode(binary: Path) -> tuple[int, int]:
    try:
        status = binary.stat()
    except OSError:
        return (0, 0)
    return status.st_ino, status.st_mtime_ns


def _prepare(machine: Machine, installation: Installation) -> list[dict[str, Any]]:
    """Look at the files that QEMU is to open, whose absence it would tell only in its log; returns the disks' nodes.

    Blocks.
    """
    for path in (machine.kernel, machine.initrd, *(device.path for device in machine.devices)):
        if path is not None and not path.is_file():
            raise FileMissing(f"{path} is not there", path=str(path))
    disks = [disk_node(disk, disk_id(number)) for number, disk in enumerate(machine.disks)]
    if machine.ram.private:
        _check_image(machine.ram, installation)
    return disks


def _check_image(ram: Ram, installation: Installation) -> None:
    """A QEMU that opens images for writing must be allowed to, although it never writes to a private mapping."""
    if not ram.path.is_file():
        raise FileMissing(f"the RAM image {ram.path} is not there", path=str(ram.path))
    if installation.maps_read_only_images or os.access(ram.path, os.W_OK):
        return
    try:
        ram.path.chmod(stat.S_IMODE(ram.path.stat().st_mode) | stat.S_IWUSR)
    except OSError as error:
        raise PermissionMissing(
            f"QEMU before 8.2 opens RAM images for writing, which this user may not do to {ram.path}",
            remedy="Install QEMU 8.2 or later, or give the image to the user that runs QEMU.",
        ) from error
