"""``ovm ps`` and ``ovm status``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.cli.parameters import MACHINE
from spec.errors import DaemonUnreachable
from spec.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spec.instance import InstanceInfo, TrustInfo


@click.command("ps", cls=OvmCommand, examples=["ovm ps", "ovm ps -aq", "ovm stop $(ovm ps -q)"])
@click.option("-a", "--all", "everything", is_flag=True, help="Ended machines too.")
@click.option("--parked", is_flag=True, help="Parked clones too (ovm warm).")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@pass_invocation
def ps_command(invocation: Invocation, everything: bool, parked: bool, quiet: bool) -> None:
    """List the machines that live, oldest first. Without a daemon there are none."""
    machines = run_async(lambda: _listed(invocation, everything, parked))
    if quiet:
        for each in machines:
            output.data(each.instance_id)
    elif invocation.json:
        output.as_json(machines)
    else:
        output.table(
            ("ID", "NAME", "ARTIFACT", "STATUS", "BOOT", "RUNTIME", "PRIVATE", "CREATED"), [_row(m) for m in machines]
        )


async def _listed(invocation: Invocation, everything: bool, parked: bool) -> list[InstanceInfo]:
    try:
        async with invocation.client() as client:
            return await client.instances(everything=everything, parked=parked)
    except DaemonUnreachable as error:
        left = _left_behind(invocation)
        known = f"an earlier one left the records of {left}; 'ovm serve --detach' takes them over"
        without = known if left else "no machine runs"
        output.message(f"ovm: {error.detail}; {without}")
        return []


def _left_behind(invocation: Invocation) -> int:
    """How many instances have a directory, though no daemon looks after them."""
    from ovms_supervisor.layout import Layout

    instances = Layout.of(invocation.settings).instances
    return sum(1 for _ in instances.iterdir()) if instances.is_dir() else 0


def _row(machine: InstanceInfo) -> tuple[str, ...]:
    memory = machine.metrics.memory
    return (
        output.short_id(machine.instance_id),
        machine.name or "-",
        machine.manifest.ref,
        f"{machine.status}{' (degraded)' if machine.degraded else ''}",
        machine.boot,
        f"{machine.runtime.name}/{machine.runtime.accelerator}" if machine.runtime else "-",
        format_size(memory.private_bytes) if memory else "-",
        output.ago(machine.created_at),
    )


@click.command("status", cls=OvmCommand, examples=["ovm status web", "ovm status web --format json | jq .metrics"])
@click.argument("machine", type=MACHINE, metavar="ID")
@pass_invocation
def status_command(invocation: Invocation, machine: str) -> None:
    """Show everything about a machine; ID is an id, a unique prefix of one, or a name."""

    async def ask() -> InstanceInfo:
        async with invocation.client() as client:
            return await client.status(machine)

    info = run_async(ask)
    if invocation.json:
        output.as_json(info)
    else:
        output.pairs(_facts(info))


def _facts(info: InstanceInfo) -> Iterator[tuple[str, str]]:
    yield "id", info.instance_id
    yield "name", info.name or "-"
    yield "status", info.status
    yield "artifact", f"{info.manifest.ref} ({output.short_digest(info.manifest.digest)})"
    yield "boot", info.boot
    if runtime := info.runtime:
        yield "runtime", f"{runtime.name} {runtime.version}, {runtime.accelerator}"
        yield "chosen as", runtime.reason
    if info.pid is not None:
        yield "pid", str(info.pid)
    yield "memory", format_size(info.memory_bytes)
    yield "cpus", str(info.cpus)
    for device in info.devices:
        yield "device", f"{device.name} ({device.type}, {format_size(device.size_bytes)})"
    for what, time in (("created", info.created_at), ("started", info.started_at), ("stopped", info.stopped_at)):
        if time:
            yield what, f"{time} ({output.ago(time)})"
    if start := info.metrics.start:
        phases = ", ".join(f"{name} {ms:.1f}" for name, ms in start.phases.items())
        how = f"{start.path} in " if start.path else ""
        yield "start", f"{how}{start.total_ms:.1f} ms ({phases})" if phases else f"{how}{start.total_ms:.1f} ms"
        if start.not_claimed:
            yield "not claimed", start.not_claimed
    if memory := info.metrics.memory:
        if info.boot == "restore":
            yield "shared", f"{format_size(memory.shared_bytes)} of the image, with other clones"
        yield "private", format_size(memory.private_bytes)
        yield "locked", format_size(memory.locked_bytes)
    if info.trust is not None:
        yield from _trust(info.trust)
    if info.isolation:
        missing = [layer.name for layer in info.isolation if not layer.holds]
        layers = f"{len(info.isolation)} layers hold" if not missing else f"without {', '.join(missing)}"
        yield "isolation", layers
    for degraded in info.degraded:
        yield "degraded", f"{degraded.detail} ({degraded.code})"
    if ending := info.exit:
        yield "exit", ending.reason
        for line in ending.last_console:
            yield "", line


def _trust(trust: TrustInfo) -> Iterator[tuple[str, str]]:
    if trust.policy is None:
        yield "trust", "no policy"
    for check in trust.checks:
        what = "RAM snapshot" if check.what == "ramSnapshot" else check.what
        by = f"signed by {check.key} ({check.signature})" if check.key else _BY.get(check.by, check.by)
        yield "trust", f"{what}: {by}, scope {check.scope}"


_BY = {"accept": "accepted without a signature", "madeHere": "made here"}
