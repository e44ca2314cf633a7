"""Starting the VMM of a machine: confined where its owner wants it so, else by posix_spawn as the daemon's equal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from anyio.to_thread import run_sync

from vmm.driver import Machine, VmmFiles
from vmm.process import VmmProcess
from vmm.sandbox.launching import Launcher
from vmm.sandbox.orders import Order
from vmm.sandbox.ownership import give_files, open_up
from vmm.sandbox.view import order_for
from vmm.spawn import find_program, open_streams


async def spawn_vmm(
    argv: Sequence[str],
    machine: Machine,
    files: VmmFiles,
    launcher: Launcher | None,
    *,
    stdout: Path | None = None,
    pass_fds: Sequence[int] = (),
    read_only: Sequence[Path] = (),
    writes_image: bool = False,
) -> VmmProcess:
    """The process of a VMM; ``read_only`` and ``writes_image`` as for ``view.order_for``.

    Raises MissingTool, FileMissing, PermissionMissing, NoSpace, CapacityExceeded, HostLimit, VmmTimeout.
    """
    confinement = files.confinement
    if confinement is None or launcher is None:
        return VmmProcess.spawn(argv, stdout=stdout, stderr=files.log, pass_fds=pass_fds)
    program = find_program(argv[0])

    def prepare() -> tuple[Order, list[int], int]:
        order = order_for(
            [program, *argv[1:]], pass_fds, machine, confinement, read_only=read_only, writes_image=writes_image
        )
        if confinement.uid is not None:
            give_files(machine, confinement.uid)
            open_up(order, machine, writes_image=writes_image)
        return order, *open_streams(program, stdout, files.log)

    order, streams, log_offset = await run_sync(prepare)
    try:
        launched = await launcher.launch(order, [*streams, *pass_fds])
    finally:
        for fd in streams:
            os.close(fd)
    return VmmProcess.of(launched, Path(program).name, files.log, log_offset)
