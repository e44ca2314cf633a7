"""``ovm run``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from ovms_supervisor.cli import background, output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.cli.parameters import SIZE, STARTABLE
from ovms_supervisor.cli.remote_source import names_registry, pull_through_daemon
from spec.errors import OvmsError

if TYPE_CHECKING:
    from ovms_supervisor.client import Client
    from spec.api import PullPolicy, StartRequest
    from spec.instance import InstanceInfo

_MAX_COUNT = 10_000
_AT_ONCE = 64
"""Starts in flight: enough to keep the daemon busy, few enough not to be turned away."""


@click.command(
    "run",
    cls=OvmCommand,
    examples=[
        "ovm run demo:base",
        "ovm run demo:warm --count 8",
        "ovm run ./demo.tar --name web --memory 1G --cpus 2",
        "ovm logs -f $(ovm run demo:base)",
    ],
)
@click.argument("source", type=STARTABLE, metavar="REF|DIR|TAR")
@click.option("--name", metavar="NAME", help="A name for it; with --count NAME-1, NAME-2, …")
@click.option("--runtime", type=click.Choice(["generic", "qemu", "cloud-hypervisor"]), help="Which VMM; generic: any.")
@click.option("--memory", type=SIZE, help="Memory, for example 512M. Not on restore.")
@click.option("--cpus", type=click.IntRange(1, 255), metavar="N", help="Number of CPUs. Not on restore.")
@click.option("--args", metavar="TEXT", help="Kernel command line instead of the artifact's. Not on restore.")
@click.option("--disk", type=click.Choice(["ephemeral", "persistent"]), help="Whether its disk outlives it.")
@click.option("--cold", is_flag=True, help="Boot, even if the artifact has a RAM snapshot.")
@click.option(
    "--pull",
    type=click.Choice(["missing", "always", "never"]),
    default="missing",
    help="When to ask the registry that REF names.",
)
@click.option("--count", type=click.IntRange(1, _MAX_COUNT), default=1, metavar="N", help="How many to start.")
@click.option("-d", "--detach", is_flag=True, hidden=True, help="What run does anyway.")
@pass_invocation
def run_command(
    invocation: Invocation,
    source: str,
    name: str | None,
    runtime: str | None,
    memory: int | None,
    cpus: int | None,
    args: str | None,
    disk: str | None,
    cold: bool,
    pull: PullPolicy,
    count: int,
    detach: bool,  # noqa: ARG001 - docker's habit, harmless
) -> None:
    """Start machines from an artifact and print their ids once they run.

    An artifact with a RAM snapshot goes on from its moment as a copy-on-write clone; one without boots. One that names
    a registry (HOST[:PORT]/NAME) is pulled if it is not in the local store. If no daemon listens, one is started in
    the background. JSON comes one machine a line.
    """
    import re

    from spec.api import INSTANCE_NAME, Overrides, StartRequest

    if name is not None and not re.fullmatch(INSTANCE_NAME, name):
        raise click.BadParameter(f"{name!r} is not a name: a-z, 0-9, _ . -, at most 63 characters", param_hint="--name")
    overrides: dict[str, Any] = {
        "runtime": runtime,
        "memory": memory,
        "cpus": cpus,
        "kernel_args": args,
        "disk": disk,
        "boot": "cold" if cold else None,
    }
    names = [name] if count == 1 else [f"{name}-{n}" if name else None for n in range(1, count + 1)]
    background.ensure(invocation)
    if pull != "never" and names_registry(source):
        manifest = run_async(lambda: pull_through_daemon(invocation, source, pull, resident=not cold))
    else:
        manifest = source
    requests = [
        StartRequest(manifest=manifest, overrides=Overrides(**overrides, name=each), pull="never") for each in names
    ]
    failures = run_async(lambda: _start_all(invocation, requests))
    for error in failures[1:]:
        output.error(error, json=invocation.json)
    if failures:
        raise failures[0]


async def _start_all(invocation: Invocation, requests: list[StartRequest]) -> list[OvmsError]:
    """Start them side by side, print each as soon as it runs; the first error of each kind ends up in the result."""
    failures: dict[str, OvmsError] = {}
    slots = asyncio.Semaphore(_AT_ONCE)

    async def start(client: Client, request: StartRequest) -> None:
        async with slots:
            try:
                _print(invocation, await _start(client, request))
            except OvmsError as error:
                failures.setdefault(error.code, error)

    try:
        async with invocation.client() as client, asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(start(client, request))
    except asyncio.CancelledError:
        output.message("ovm: interrupted; what is starting goes on starting, see 'ovm ps'")
        raise
    return list(failures.values())


async def _start(client: Client, request: StartRequest) -> InstanceInfo:
    reply = await client.start(request, wait="running")
    if reply.status == "starting":
        output.message(
            f"ovm: {reply.instance_id} is still starting; see 'ovm status {output.short_id(reply.instance_id)}'"
        )
    return reply.info if reply.info is not None else await client.status(reply.instance_id)


def _print(invocation: Invocation, info: InstanceInfo) -> None:
    if invocation.json:
        output.as_json_line(info)
    else:
        output.data(info.instance_id)
    for degraded in info.degraded:
        output.message(f"ovm: degraded: {degraded.detail} ({degraded.code})")
