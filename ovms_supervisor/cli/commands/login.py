"""``ovm login`` and ``ovm logout``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.cli.parameters import REGISTRY

if TYPE_CHECKING:
    from cache.registry.login import LoggedIn
    from ovms_supervisor.config import Settings

_MAX_PASSWORD_BYTES = 64 * 1024


@click.command(
    "login",
    cls=OvmCommand,
    examples=["ovm login registry.example.com", "pass show registry | ovm login -u ci --password-stdin 127.0.0.1:5000"],
)
@click.argument("host", type=REGISTRY, metavar="HOST")
@click.option("-u", "--username", metavar="NAME", help="Asked for if it is not given.")
@click.option("--password-stdin", is_flag=True, help="Read the password, or an access token, from stdin.")
@click.option("--plain-http", is_flag=True, help="Speak to this registry without TLS; on loopback that is the default.")
@pass_invocation
def login_command(
    invocation: Invocation, host: str, username: str | None, password_stdin: bool, plain_http: bool
) -> None:
    """Try a user and password at a registry, and keep them where docker and podman do.

    They go into the file that has a login for HOST already, else the first of podman's and docker's that is there, or
    to the credential helper that it names. The password is asked for; no option takes it, since all users of this host
    can see the arguments of a process.
    """
    if password_stdin:
        if username is None:
            raise click.UsageError("--password-stdin needs --username")
        password = _from_stdin()
    else:
        if not sys.stdin.isatty():
            raise click.UsageError("there is no terminal to ask for the password; use --password-stdin")
        username = username or click.prompt("Username", err=True)
        password = click.prompt("Password", hide_input=True, err=True)
    settings, user = invocation.settings, username
    made = run_async(lambda: _log_in(settings, host, user, password, plain_http))
    if invocation.json:
        output.as_json({"host": host, "username": user, "place": made.place, "checked": made.is_checked})
        return
    if not made.is_checked:
        output.message(f"{host} lets everybody in: the password was not checked")
    output.message(f"logged in to {host} as {user}; kept in {made.place}")
    if made.is_plain:
        output.message(
            "  not encrypted: who can read the file can read the password; a credential helper keeps it safe"
        )


@click.command("logout", cls=OvmCommand, examples=["ovm logout registry.example.com"])
@click.argument("host", type=REGISTRY, metavar="HOST")
@pass_invocation
def logout_command(invocation: Invocation, host: str) -> None:
    """Forget the logins at a registry, in all files and helpers of docker and podman."""
    from cache.registry.login import log_out
    from ovms_supervisor.registries import access_of

    files = access_of(invocation.settings).auth_files
    places = run_async(lambda: log_out(files, host))
    if invocation.json:
        output.as_json({"host": host, "places": places})
    elif places:
        output.message(f"logged out of {host}: {', '.join(places)}")
    else:
        output.message(f"not logged in to {host}")


def _from_stdin() -> str:
    data = sys.stdin.buffer.read(_MAX_PASSWORD_BYTES)
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise click.UsageError("the password on stdin is not UTF-8") from error


async def _log_in(settings: Settings, host: str, username: str, password: str, plain_http: bool) -> LoggedIn:
    from cache.registry.access import open_registries
    from cache.registry.login import log_in
    from ovms_supervisor.registries import access_of
    from spec.reference import parse_reference

    access = access_of(settings, plain_http=(host,) if plain_http else ())
    named = os.environ.get("REGISTRY_AUTH_FILE")
    files = (Path(named),) if named else access.auth_files
    async with open_registries(access) as registries:
        origin = registries.repository(parse_reference(f"{host}/x")).origin
        return await log_in(registries.transport, origin, files, host, username, password)
