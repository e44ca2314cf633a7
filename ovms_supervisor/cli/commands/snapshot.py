"""``ovm snapshot``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.cli.parameters import MACHINE

if TYPE_CHECKING:
    from spec.api import SnapshotReply


@click.command(
    "snapshot", cls=OvmCommand, examples=["ovm snapshot web -t demo:warm", "ovm run $(ovm snapshot web -t demo:warm)"]
)
@click.argument("machine", type=MACHINE, metavar="ID")
@click.option(
    "-t",
    "--tag",
    required=True,
    metavar="REF",
    help="The name of the new artifact; a bare tag replaces that of the machine's artifact.",
)
@pass_invocation
def snapshot_command(invocation: Invocation, machine: str, tag: str) -> None:
    """Save memory, device state and disk of a machine as a new artifact, and print its digest.

    The machine goes on; how long it stood still is told on stderr.
    """

    async def ask() -> SnapshotReply:
        async with invocation.client() as client:
            return await client.snapshot(machine, tag)

    reply = run_async(ask)
    if invocation.json:
        output.as_json(reply)
        return
    output.data(reply.snapshot_ref)
    output.message(f"saved as {reply.reference}; the machine stood still for {reply.pause_ms:.1f} ms")
