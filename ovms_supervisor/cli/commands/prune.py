"""``ovm prune``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import background, output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from spec.sizes import format_size

if TYPE_CHECKING:
    from spec.api import PruneReply


@click.command("prune", cls=OvmCommand, examples=["ovm prune --dry-run", "ovm prune", "ovm prune --all"])
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would go.")
@click.option(
    "-a",
    "--all",
    "everything",
    is_flag=True,
    help="Also what can be fetched or made again: downloads of the last day, extracted disks, unused RAM images.",
)
@pass_invocation
def prune_command(invocation: Invocation, dry_run: bool, everything: bool) -> None:
    """Remove what nobody refers to any more, and print what that was.

    Artifacts without a name go, and what was left of interrupted downloads a day ago. What a name, a machine (also one
    that has stopped) or a persistent disk leads to stays, with its signatures. A daemon that listens does it, so that
    resident RAM images go too.
    """
    if background.answers(invocation.settings.socket):
        reply = run_async(lambda: _ask(invocation, dry_run=dry_run, everything=everything))
    else:
        reply = _here(invocation, dry_run=dry_run, everything=everything)
    if invocation.json:
        output.as_json(reply)
        return
    for each in reply.removed:
        output.data(each.what)
    output.message(f"{'would free' if dry_run else 'freed'} {format_size(reply.freed_bytes)}")


async def _ask(invocation: Invocation, *, dry_run: bool, everything: bool) -> PruneReply:
    async with invocation.client() as client:
        return await client.prune(everything=everything, dry_run=dry_run)


def _here(invocation: Invocation, *, dry_run: bool, everything: bool) -> PruneReply:
    from cache.prune import prune
    from spec.api import PrunedItem, PruneReply

    garbage = prune(invocation.store(), everything=everything, dry_run=dry_run)
    removed = [PrunedItem(what=each.what, size_bytes=each.size_bytes) for each in garbage]
    return PruneReply(dry_run=dry_run, removed=removed, freed_bytes=sum(each.size_bytes for each in removed))
