"""``ovm pull``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.cli.parameters import REMOTE
from ovms_supervisor.cli.transfer_display import transfer_display
from spec.sizes import format_size

if TYPE_CHECKING:
    from cache.registry.index_choice import HostPlatform
    from cache.registry.pull import Pulled
    from cache.store import Store
    from ovms_supervisor.cli.transfer_display import TransferDisplay
    from ovms_supervisor.config import Settings
    from spec.reference import Reference


@click.command(
    "pull",
    cls=OvmCommand,
    examples=["ovm pull registry.example.com/demo/web:warm", "ovm pull 127.0.0.1:5000/demo:base"],
)
@click.argument("reference", type=REMOTE, metavar="REF")
@click.option("--plain-http", is_flag=True, help="Speak to this registry without TLS; on loopback that is the default.")
@click.option(
    "--verify/--no-verify",
    default=None,
    help="Whether the policy is asked before blobs are fetched; default: verify_on_pull. A start asks it in any case.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@pass_invocation
def pull_command(
    invocation: Invocation, reference: Reference, plain_http: bool, verify: bool | None, quiet: bool
) -> None:
    """Fetch an artifact from a registry into the local store and print its digest.

    REF is HOST[:PORT]/NAME[:TAG] or HOST[:PORT]/NAME@sha256:…; no daemon is needed. What is there is not fetched, and
    an interrupted pull goes on where it was. The logins of docker and podman are used.
    """
    settings, store = invocation.settings, invocation.store()
    hosts = (reference.registry or "",) if plain_http else ()
    with transfer_display(quiet=quiet or invocation.json) as display:
        asked = settings.verify_on_pull if verify is None else verify
        pulled = run_async(lambda: _pull(settings, store, reference, hosts, asked, display))
    if invocation.json:
        from ovms_supervisor.pulling import reply_of

        output.as_json(reply_of(pulled))
        return
    output.data(pulled.digest)
    if not quiet:
        output.message(_told(pulled))


async def _pull(
    settings: Settings,
    store: Store,
    reference: Reference,
    hosts: tuple[str, ...],
    verify: bool,
    display: TransferDisplay,
) -> Pulled:
    from cache.registry.access import open_registries
    from cache.registry.download import Downloads
    from cache.registry.pull import PullOptions, pull, wanted_of
    from cache.trust.gate import Gate
    from cache.trust.on_pull import PulledSignatures
    from cache.trust.policy_source import PolicySource
    from ovms_supervisor.registries import access_of

    async def platform() -> HostPlatform:
        from ovms_supervisor.instance.runtimes import Runtimes
        from vmm.registry import drivers

        return await Runtimes(drivers(settings.binaries)).platform()

    gate = Gate(store, PolicySource(settings.root, settings.policy))
    try:
        async with (
            open_registries(access_of(settings, plain_http=hosts)) as registries,
            PulledSignatures(store, gate, reference, verify=verify) as signatures,
        ):
            options = PullOptions(
                platform=platform,
                downloads=Downloads(report=display.report),
                approve=signatures.approve,
                registries=registries,
                begin=lambda artifact: display.begin(artifact.digest, wanted_of(artifact)),
            )
            pulled = await pull(store, registries.repository(reference), reference, options)
            await signatures.keep(pulled.digest)
            return pulled
    except asyncio.CancelledError:
        output.message("ovm: interrupted; what has arrived is kept for the next pull")
        raise


def _told(pulled: Pulled) -> str:
    parts = [f"{format_size(pulled.network_bytes)} in {pulled.total_ms / 1e3:.2f} s ({pulled.mb_per_s:.1f} MB/s)"]
    if pulled.resumed_bytes:
        parts.append(f"{format_size(pulled.resumed_bytes)} from an earlier pull")
    if pulled.there_bytes:
        parts.append(f"{format_size(pulled.there_bytes)} were there")
    return f"pulled {pulled.reference}: {', '.join(parts)}"
