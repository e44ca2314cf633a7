"""Whether VMMs can be confined here: tried with a process that does nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ovms_supervisor.cli.doctor.finding import Finding, fail, ok, warn
from vmm.sandbox.launching import Launcher
from vmm.sandbox.probing import probe

if TYPE_CHECKING:
    from ovms_supervisor.config import Settings

_REMEDY = "Run the daemon as root, or let this user make user namespaces (kernel.unprivileged_userns_clone=1)."


async def isolation(settings: Settings) -> Finding:
    """The namespaces, the view and the user that a VMM would get."""
    check = "isolation"
    if settings.isolation == "off":
        return warn(
            check, "off", "a VMM that a guest has taken over is as mighty as the daemon", 'Set isolation = "auto".'
        )
    with tempfile.TemporaryDirectory() as scratch:
        launcher = Launcher(Path(scratch) / "log")
        try:
            unavailable = await probe(launcher)
        finally:
            await launcher.close()
    if unavailable is None:
        return ok(check, f"{settings.isolation}: VMMs get namespaces, a view of their files and a user of their own")
    if settings.isolation == "required":
        return fail(check, "not available", f"it is required, and {unavailable}", _REMEDY)
    return warn(check, "not available", f"VMMs run as the daemon does: {unavailable}", _REMEDY)
