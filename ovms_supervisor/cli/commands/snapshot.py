"""``ovm snapshot``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.cli.parameters import MACHINE
from ovms_supervisor.cli.transfer_display import transfer_display
from ovms_supervisor.cli.transfer_watch import told, watched
from spec.errors import InvalidReference

if TYPE_CHECKING:
    from spec.api import SnapshotReply


@click.command(
    "snapshot",
    cls=OvmCommand,
    examples=[
        "ovm snapshot web -t demo:warm",
        "ovm run $(ovm snapshot web -t demo:warm)",
        "ovm snapshot web -t registry.example.com/demo/web:warm",
    ],
)
@click.argument("machine", type=MACHINE, metavar="ID")
@click.option(
    "-t",
    "--tag",
    required=True,
    metavar="REF",
    help="The name of the new artifact; a bare tag replaces that of the machine's artifact.",
)
@click.option("--push/--no-push", default=None, help="Push it; the default if REF names a registry.")
@pass_invocation
def snapshot_command(invocation: Invocation, machine: str, tag: str, push: bool | None) -> None:
    """Save memory, device state and disk of a machine as a new artifact, and print its digest.

    With a REF that names a registry (HOST[:PORT]/NAME:TAG) it is pushed there too; only blobs that the registry lacks
    are sent. If that fails, the artifact is in the local store all the same. The machine goes on; how long it stood
    still is told on stderr.
    """

    async def ask() -> SnapshotReply:
        with transfer_display(quiet=invocation.json) as display:
            async with invocation.client() as client:
                try:
                    async with watched(client, "push", _full(tag), display):
                        return await client.snapshot(machine, tag, push=push)
                except asyncio.CancelledError:
                    output.message("ovm: interrupted; the daemon goes on")
                    raise

    reply = run_async(ask)
    if invocation.json:
        output.as_json(reply)
        return
    output.data(reply.snapshot_ref)
    output.message(f"saved as {reply.reference}; the machine stood still for {reply.pause_ms:.1f} ms")
    if reply.pushed is not None:
        output.message(told(reply.pushed))


def _full(tag: str) -> str:
    """As events have it, if it is a reference at all."""
    from spec.reference import parse_reference

    try:
        return str(parse_reference(tag))
    except InvalidReference:
        return tag  # the daemon will tell what is wrong
