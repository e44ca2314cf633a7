"""The driver: finds Cloud Hypervisor, starts processes of it, and takes over running ones."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path

from anyio import CancelScope
from anyio.to_thread import run_sync

from spec.errors import FileMissing
from vmm import ram_file, unix_socket
from vmm.cloud_hypervisor.events import make_pipe
from vmm.cloud_hypervisor.probe import BINARY, probe
from vmm.cloud_hypervisor.vm import CloudHypervisorVm, ProcessFiles
from vmm.driver import Machine, RuntimeName, RuntimeReport, VmmFiles
from vmm.process import VmmProcess
from vmm.sandbox.launching import Launcher
from vmm.sandbox.spawning import spawn_vmm


class CloudHypervisor:
    """See :class:`vmm.driver.Driver`."""

    name: RuntimeName = "cloud-hypervisor"

    def __init__(self, binary: Path | None = None, launcher: Launcher | None = None) -> None:
        """``launcher`` makes the processes whose files ask for confinement."""
        self._binary = binary
        self._launcher = launcher

    async def probe(self) -> RuntimeReport:
        """Runs the binary for its version and options, and looks at /dev/kvm and the CPU flags."""
        return await run_sync(probe, self._binary)

    async def spawn(self, machine: Machine, files: VmmFiles, *, incoming: bool) -> CloudHypervisorVm:
        """Start a process. It takes commands at once: the API socket is made here and listens before the process runs.

        So nothing is waited for, and what is wrong with the process shows at the first command. The events go
        into a pipe that the process itself holds: it outlives us, is bounded, and no reader can block the guest.
        """
        own = ProcessFiles.of(files)
        async with AsyncExitStack() as undo:
            ours = undo.enter_context(ExitStack())
            try:
                if files.confinement is not None:  # its view is made of what is there
                    await run_sync(partial(own.restore.parent.mkdir, mode=0o755, exist_ok=True))
                listener = ours.enter_context(unix_socket.listen(own.socket))
                undo.push_async_callback(run_sync, own.remove)
                events = make_pipe(own.events)
            except OSError as error:
                raise FileMissing(f"cannot prepare {own.socket}: {error.strerror}") from error
            ours.callback(os.close, events)
            fds = (listener.fileno(), events)
            if not (incoming or machine.ram.private):
                ram_file.create(machine.ram)
                undo.push_async_callback(run_sync, partial(machine.ram.path.unlink, missing_ok=True))
            argv = [str(self._binary or BINARY), "--api-socket", f"fd={fds[0]}", "--event-monitor", f"fd={fds[1]}"]
            process = await spawn_vmm(
                argv,
                machine,
                files,
                self._launcher,
                stdout=files.console,
                pass_fds=fds,
                read_only=[own.restore.parent],
            )
            ours.close()  # only the process holds the listener now: should it die, waiting connections break
            undo.pop_all()
        unused_ram = None if incoming or machine.ram.private else machine.ram.path
        vm = CloudHypervisorVm(process, machine, own, files.confinement, unused_ram=unused_ram)
        if files.confinement is not None and files.confinement.strict:
            try:
                await vm.answers()  # from here on its own filters of system calls are in place
            except BaseException:
                with CancelScope(shield=True):
                    await vm.stop(guest_grace_s=0)
                raise
        return vm

    async def attach(self, machine: Machine, files: VmmFiles, pid: int) -> CloudHypervisorVm:
        """Take over a process by the socket in its instance's directory. Raises VmmExited."""
        process = VmmProcess.attach(pid, name=BINARY, log=files.log)
        return CloudHypervisorVm(process, machine, ProcessFiles.of(files), files.confinement)
