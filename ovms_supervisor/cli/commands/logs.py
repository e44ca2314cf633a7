"""``ovm logs``."""

from __future__ import annotations

import sys
from typing import Any

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.cli.parameters import MACHINE, TAIL
from ovms_supervisor.terminal import NeutralStream


@click.command(
    "logs",
    cls=OvmCommand,
    examples=["ovm logs -f web", "ovm logs --tail 20 web", "ovm logs --since 10m --timestamps web > web.log"],
)
@click.argument("machine", type=MACHINE, metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the machine has ended.")
@click.option("-n", "--tail", type=TAIL, metavar="N", help="Only the last N lines; 'all' is the default.")
@click.option("--since", metavar="TIME", help="From a time on: RFC 3339, or a duration ago such as 10m.")
@click.option("--until", metavar="TIME", help="Up to a time.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@pass_invocation
def logs_command(
    invocation: Invocation,
    machine: str,
    follow: bool,
    tail: str | None,
    since: str | None,
    until: str | None,
    timestamps: bool,
) -> None:
    """Print the console of a machine, also of one that has ended.

    Piped, the bytes are those of the guest. On a terminal, control and escape sequences are shown, not obeyed.
    JSON comes one line of the console a line, with its time and number.
    """

    window: dict[str, Any] = {"follow": follow, "tail": tail, "since": since, "until": until}
    if invocation.json:
        run_async(lambda: _lines(invocation, machine, window))
    else:
        run_async(lambda: _bytes(invocation, machine, {**window, "timestamps": timestamps}))


async def _lines(invocation: Invocation, machine: str, window: dict[str, Any]) -> None:
    async with invocation.client() as client:
        async for item in client.log_lines(machine, **window):
            output.as_json_line(item)


async def _bytes(invocation: Invocation, machine: str, window: dict[str, Any]) -> None:
    out = sys.stdout.buffer
    neutral = NeutralStream() if sys.stdout.isatty() else None
    async with invocation.client() as client:
        async for chunk in client.logs(machine, **window):
            out.write(neutral.feed(chunk).encode() if neutral else chunk)
            out.flush()
    if neutral:
        out.write(neutral.finish().encode())
        out.flush()
