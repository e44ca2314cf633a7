"""A reference with a registry, pulled by the daemon while its events show how far that is."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from ovms_supervisor.cli import output
from ovms_supervisor.cli.transfer_display import transfer_display
from spec.errors import DaemonUnreachable

if TYPE_CHECKING:
    from typing import Literal

    from ovms_supervisor.cli.invocation import Invocation
    from ovms_supervisor.cli.transfer_display import TransferDisplay
    from ovms_supervisor.client import Client


def names_registry(source: str) -> bool:
    """Whether what is to be started is a reference that names a registry."""
    from spec.reference import Reference, parse_source

    parsed = parse_source(source)
    return isinstance(parsed, Reference) and parsed.registry is not None


async def pull_through_daemon(invocation: Invocation, source: str, policy: Literal["missing", "always"]) -> str:
    """Have it in the daemon's store; returns what to start from there."""
    from spec.reference import parse_reference

    parsed = parse_reference(source)
    reference = str(parsed)
    with transfer_display(quiet=invocation.json) as display:
        async with invocation.client() as client:
            watching = asyncio.create_task(_watch(client, reference, display))
            try:
                reply = await client.pull(reference, policy=policy)
            except asyncio.CancelledError:
                output.message("ovm: interrupted; the daemon goes on pulling")
                raise
            finally:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
    if reply.network_bytes and not invocation.json:
        output.message(f"pulled {reply.network_bytes / 1e6:.1f} MB in {(reply.total_ms or 0) / 1e3:.2f} s")
    # What an index was resolved to has the name, but not the digest of the index.
    return str(reply.digest) if reply.index and parsed.digest else source


async def _watch(client: Client, reference: str, display: TransferDisplay) -> None:
    begun = False
    with suppress(DaemonUnreachable):  # the pull itself will tell
        async for event in client.events():
            if event.type != "pull.progress" or event.detail.get("reference") != reference:
                continue
            if not begun:
                begun = True
                output.message(f"pulling {reference}: {event.detail['digest']}")
            for blob in event.detail["blobs"]:
                display.show(blob["digest"], blob["title"], blob["state"], blob["at_bytes"], blob["size_bytes"])
