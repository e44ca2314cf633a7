"""``ovm service``."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation
from ovms_supervisor.service_units import SERVICE_NAME, SOCKET_NAME, service_unit, socket_unit
from spec.errors import PermissionMissing

_SYSTEM = Path("/etc/systemd/system")


@click.command(
    "service",
    cls=OvmCommand,
    examples=[
        "ovm service print",
        "ovm --run-dir /run/vms service print",
        "ovm service install",
        "ovm service remove",
    ],
)
@click.argument("action", type=click.Choice(["print", "install", "remove"]))
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where units go; by default that of the system's, or for an ordinary user that of the user's systemd.",
)
@pass_invocation
def service_command(invocation: Invocation, action: str, directory: Path | None) -> None:
    """Run the daemon under systemd: print, install or remove its units.

    The units carry the global options of this call (--root, --run-dir, --config, ...). Nothing is started; the
    commands that do are printed.
    """
    user = os.geteuid() != 0
    directory = directory or (_user_directory() if user else _SYSTEM)
    if action == "remove":
        for name in (SERVICE_NAME, SOCKET_NAME):
            _removed(directory / name)
        return
    settings = invocation.settings
    command = [*_ovm(), *invocation.arguments(), "serve"]
    units = {
        SERVICE_NAME: service_unit(command, user=user),
        SOCKET_NAME: socket_unit(settings.socket, settings.socket_group, user=user),
    }
    if action == "print":
        if invocation.json:
            output.as_json(units)
        else:
            output.data("\n".join(f"# {directory / name}\n{text}" for name, text in units.items()))
        return
    for name, text in units.items():
        _written(directory / name, text)
    systemctl = "systemctl --user" if user else "systemctl"
    output.message(f"now: {systemctl} daemon-reload && {systemctl} enable --now {SOCKET_NAME} {SERVICE_NAME}")
    if user:
        output.message("     loginctl enable-linger   # or your machines end when you log out")


def _ovm() -> list[str]:
    """This very ``ovm``, by its whole path: systemd searches no PATH of yours."""
    beside = Path(sys.executable).with_name("ovm")
    if os.access(beside, os.X_OK):
        return [str(beside)]
    found = shutil.which("ovm")
    return [found] if found else [sys.executable, "-m", "ovms_supervisor.cli"]


def _user_directory() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _written(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PermissionMissing(
            f"{path} cannot be written: {error.strerror}", remedy="Run it as root, or name another --directory."
        ) from error
    output.data(str(path))


def _removed(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise PermissionMissing(f"{path} cannot be removed: {error.strerror}") from error
    output.data(str(path))
