"""``ovm push``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from ovms_supervisor.cli.parameters import REMOTE, STORED
from ovms_supervisor.cli.transfer_display import transfer_display
from ovms_supervisor.cli.transfer_watch import told

if TYPE_CHECKING:
    from cache.registry.push import Pushed
    from cache.store import Store
    from ovms_supervisor.cli.transfer_display import TransferDisplay
    from ovms_supervisor.config import Settings
    from spec.reference import DigestSource, Reference


@click.command(
    "push",
    cls=OvmCommand,
    examples=[
        "ovm push registry.example.com/demo/web:warm",
        "ovm push demo:base 127.0.0.1:5000/demo:base",
        "ovm push sha256:1f0c9e registry.example.com/demo/web:warm",
    ],
)
@click.argument("source", type=STORED, metavar="[LOCAL]")
@click.argument("remote", type=REMOTE, metavar="REMOTE", required=False)
@click.option("--plain-http", is_flag=True, help="Speak to this registry without TLS; on loopback that is the default.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@pass_invocation
def push_command(
    invocation: Invocation, source: Reference | DigestSource, remote: Reference | None, plain_http: bool, quiet: bool
) -> None:
    """Store an artifact of the local store in a registry, and print its digest.

    REMOTE is HOST[:PORT]/NAME[:TAG]; LOCAL is its name here, if that is another one. No daemon is needed. What the
    registry has is not sent; an upload that breaks off goes on where it was. The base of a snapshot goes with it, as
    far as it consists of the same blobs. 'ovm login' and the logins of docker and podman are used.
    """
    if remote is None:
        remote = REMOTE.convert(str(source), None, click.get_current_context())
    settings, store = invocation.settings, invocation.store()
    reference = remote
    hosts = (reference.registry or "",) if plain_http else ()
    with transfer_display(quiet=quiet or invocation.json) as display:
        pushed = run_async(lambda: _push(settings, store, source, reference, hosts, display))
    from ovms_supervisor.pushing import reply_of

    reply = reply_of(pushed)
    if invocation.json:
        output.as_json(reply)
        return
    output.data(pushed.digest)
    if not quiet:
        output.message(told(reply))


async def _push(
    settings: Settings,
    store: Store,
    source: Reference | DigestSource,
    reference: Reference,
    hosts: tuple[str, ...],
    display: TransferDisplay,
) -> Pushed:
    import asyncio

    from cache.registry.access import open_registries
    from cache.registry.push import push
    from ovms_supervisor.registries import access_of

    digest = await asyncio.to_thread(store.resolve, source)
    async with open_registries(access_of(settings, plain_http=hosts)) as registries:
        return await push(
            store,
            digest,
            registries.repository(reference),
            reference,
            report=display.report,
            begin=lambda artifact: display.begin(artifact.digest, artifact.blobs),
        )
