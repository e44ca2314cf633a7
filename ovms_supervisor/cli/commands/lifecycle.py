"""``ovm stop``, ``pause``, ``resume`` and ``rm``: what is done to several machines at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.cli.parameters import MACHINE
from spec.errors import OvmsError, WrongState

if TYPE_CHECKING:
    from ovms_supervisor.client import Client

_machines = click.argument("machines", type=MACHINE, metavar="ID...", nargs=-1, required=True)


@click.command("stop", cls=OvmCommand, examples=["ovm stop web", "ovm stop --time 30 web db", "ovm stop $(ovm ps -q)"])
@_machines
@click.option(
    "-t",
    "--time",
    "grace_s",
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    help="How long a guest may take to power off before it is ended. Default: stop_grace_s, see 'ovm config'.",
)
@click.option("--no-wait", is_flag=True, help="Don't wait until it has stopped.")
@pass_invocation
def stop_command(invocation: Invocation, machines: tuple[str, ...], grace_s: float | None, no_wait: bool) -> None:
    """Ask guests to power off, end those that don't, and print the ids once they have stopped."""

    async def stop(client: Client, machine: str) -> None:
        await client.stop(machine, timeout_s=grace_s, wait=None if no_wait else "stopped")

    _each(invocation, machines, stop)


@click.command("pause", cls=OvmCommand, examples=["ovm pause web"])
@_machines
@pass_invocation
def pause_command(invocation: Invocation, machines: tuple[str, ...]) -> None:
    """Halt the CPUs of machines; their memory stays."""
    _each(invocation, machines, lambda client, machine: client.pause(machine))


@click.command("resume", cls=OvmCommand, examples=["ovm resume web"])
@_machines
@pass_invocation
def resume_command(invocation: Invocation, machines: tuple[str, ...]) -> None:
    """Let paused machines go on."""
    _each(invocation, machines, lambda client, machine: client.resume(machine))


@click.command("rm", cls=OvmCommand, examples=["ovm rm web", "ovm rm -f $(ovm ps -aq)"])
@_machines
@click.option("-f", "--force", is_flag=True, help="Stop it first if it runs.")
@pass_invocation
def rm_command(invocation: Invocation, machines: tuple[str, ...], force: bool) -> None:
    """Remove stopped machines with their console, and their disks unless persistent."""

    async def remove(client: Client, machine: str) -> None:
        try:
            await client.remove(machine, force=force)
        except WrongState as error:
            remedy = f"Stop it first, or remove it with 'ovm rm -f {machine}'."
            raise WrongState(error.detail, remedy=remedy, **error.fields) from error

    _each(invocation, machines, remove)


def _each(
    invocation: Invocation, machines: tuple[str, ...], action: Callable[[Client, str], Awaitable[object]]
) -> None:
    """Do it to all at the same time; print the ids of those it worked for, in the order given, then fail if any did."""
    import asyncio

    async def main() -> list[OvmsError | None]:
        async with invocation.client() as client:
            results = await asyncio.gather(*(action(client, each) for each in machines), return_exceptions=True)
        unexpected = [result for result in results if isinstance(result, BaseException) and not _is_ours(result)]
        if unexpected:
            raise unexpected[0]
        return [result if isinstance(result, OvmsError) else None for result in results]

    results = run_async(main)
    done = [machine for machine, error in zip(machines, results, strict=True) if error is None]
    if invocation.json:
        output.as_json(done)
    else:
        for machine in done:
            output.data(machine)
    failures = [error for error in results if error is not None]
    for error in failures[:-1]:
        output.error(error, json=invocation.json)
    if failures:
        raise failures[-1]


def _is_ours(error: BaseException) -> bool:
    return isinstance(error, OvmsError)
