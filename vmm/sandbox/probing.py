"""Whether this host confines processes at all: by confining one that does nothing."""

from __future__ import annotations

import asyncio
import os
import shutil

from spec.errors import OvmsError
from vmm.sandbox.kernel import NAMESPACES
from vmm.sandbox.launching import Launcher
from vmm.sandbox.orders import SHARED_BY_ALL, Order
from vmm.sandbox.view import PROGRAMS

_NOBODY = 65534


async def probe(launcher: Launcher) -> str | None:
    """Why no process can be confined; None if one was."""
    program = shutil.which("true")
    if program is None:
        return "there is no program 'true' to try it with"
    root = os.geteuid() == 0
    order = Order(
        argv=[program],
        environment={},
        fds=[],
        namespaces=sorted(set(NAMESPACES) - ({"user"} | SHARED_BY_ALL if root else set())),
        uid=_NOBODY if root else None,
        programs=list(PROGRAMS),
    )
    null = os.open(os.devnull, os.O_RDWR)
    try:
        launched = await launcher.launch(order, [null] * 3)
    except (OvmsError, OSError) as error:
        return str(error)
    finally:
        os.close(null)
    try:
        await asyncio.to_thread(os.waitid, os.P_PIDFD, launched.pidfd, os.WEXITED)
    finally:
        os.close(launched.pidfd)
    return None
