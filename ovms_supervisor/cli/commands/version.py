"""``ovm version``."""

from __future__ import annotations

import platform

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.version import VERSION
from spec.errors import DaemonUnreachable


@click.command("version", cls=OvmCommand, examples=["ovm version", "ovm version --format json"])
@pass_invocation
def version_command(invocation: Invocation) -> None:
    """Show versions of this program, the specification, and the daemon if one answers."""
    mine = {"version": VERSION, "spec": "0.1", "python": platform.python_version()}
    daemon = run_async(lambda: _daemon_version(invocation))
    if invocation.json:
        output.as_json({"client": mine, "daemon": daemon})
        return
    rows = [("ovm", mine["version"]), ("OVMS", f"v{mine['spec']}"), ("Python", mine["python"])]
    answer = f"{daemon['version']} (Python {daemon['python']})" if daemon else "not running"
    output.pairs([*rows, ("daemon", answer)])


async def _daemon_version(invocation: Invocation) -> dict[str, str] | None:
    try:
        async with invocation.client() as client:
            reply = await client.version()
    except DaemonUnreachable:
        return None
    return {"version": reply.version, "spec": reply.spec, "python": reply.python}
