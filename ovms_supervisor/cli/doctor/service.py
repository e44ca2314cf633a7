"""The directories, the daemon, and who could look after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ovms_supervisor.cli import background
from ovms_supervisor.cli.doctor.finding import Finding, fail, ok, warn
from ovms_supervisor.config import host
from spec.errors import PermissionMissing
from spec.sizes import GIB, format_size

if TYPE_CHECKING:
    from ovms_supervisor.config import Settings


def store(settings: Settings) -> Finding:
    """Whether artifacts can be written, and for how much there is room."""
    check, path = "store", settings.root
    if reason := _not_writable(path):
        return fail(check, str(path), reason, "Name a directory of your own with --root or OVMS_ROOT.")
    found = host.filesystem_of(path)
    figure = f"{path}: {found.kind}, {format_size(found.free_bytes)} free"
    if found.free_bytes < GIB:
        return warn(check, figure, "hardly room for an artifact", "Free space, or move it with --root.")
    return ok(check, figure)


def run_dir(settings: Settings) -> Finding:
    """Whether machines can have their directories."""
    if reason := _not_writable(settings.run_dir):
        remedy = "Name a directory of your own with --run-dir or OVMS_RUN_DIR."
        return fail("run directory", str(settings.run_dir), reason, remedy)
    return ok("run directory", str(settings.run_dir))


def _not_writable(path: Path) -> str | None:
    """Why the directory can't be written to or made; None if it can."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        return f"{existing} is not a directory"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"this user can't write to {existing}"
    return None


def daemon(settings: Settings) -> Finding:
    """Whether one answers."""
    try:
        if background.answers(settings.socket):
            return ok("daemon", f"answers on {settings.socket} (pid {background.owner(settings.socket)})")
    except PermissionMissing as error:
        return warn("daemon", str(settings.socket), error.detail, error.remedy)
    return ok("daemon", "not running", "'ovm run' starts one")


def systemd(_: Settings) -> Finding:
    """Whether systemd could run the daemon as a service."""
    if Path("/run/systemd/system").is_dir():
        return ok("systemd", "is the init of this host")
    return ok("systemd", "not the init of this host", "nobody restarts the daemon if it ends")
