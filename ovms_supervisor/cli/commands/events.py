"""``ovm events``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async

if TYPE_CHECKING:
    from spec.api import Event


@click.command(
    "events",
    cls=OvmCommand,
    examples=["ovm events", "ovm events --format json | jq 'select(.type == \"instance.failed\")'"],
)
@pass_invocation
def events_command(invocation: Invocation) -> None:
    """Print what happens to machines as it happens, until interrupted. JSON comes one event a line."""

    async def follow() -> None:
        async with invocation.client() as client:
            async for event in client.events():
                if invocation.json:
                    output.as_json_line(event)
                else:
                    output.data(_line(event))

    run_async(follow)


def _line(event: Event) -> str:
    words = [event.ts, event.type]
    if event.instance_id:
        words.append(output.short_id(event.instance_id))
    if event.name:
        words.append(f"name={event.name}")
    if event.cause:
        words.append(f"cause={event.cause!r}")
    words += [f"{name}={value}" for name, value in event.detail.items()]
    return " ".join(words)
