"""A reference with a registry, pulled by the daemon while its events show how far that is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ovms_supervisor.cli import output
from ovms_supervisor.cli.transfer_display import transfer_display
from ovms_supervisor.cli.transfer_watch import watched
from spec.sizes import format_size

if TYPE_CHECKING:
    from typing import Literal

    from ovms_supervisor.cli.invocation import Invocation


def names_registry(source: str) -> bool:
    """Whether what is to be started is a reference that names a registry."""
    from spec.reference import Reference, parse_source

    parsed = parse_source(source)
    return isinstance(parsed, Reference) and parsed.registry is not None


async def pull_through_daemon(
    invocation: Invocation, source: str, policy: Literal["missing", "always"], *, resident: bool
) -> str:
    """Have it in the daemon's store, and with ``resident`` its RAM in memory; returns what to start from there.

    Without its RAM, the policy is asked by the start alone, which knows that the rules for RAM don't count.
    """
    from spec.reference import parse_reference

    parsed = parse_reference(source)
    reference = str(parsed)
    with transfer_display(quiet=invocation.json) as display:
        async with invocation.client() as client:
            try:
                async with watched(client, "pull", reference, display):
                    reply = await client.pull(
                        reference, policy=policy, resident=resident, verify=None if resident else False
                    )
            except asyncio.CancelledError:
                output.message("ovm: interrupted; the daemon goes on pulling")
                raise
    if reply.network_bytes and not invocation.json:
        told = f"pulled {format_size(reply.network_bytes)} in {(reply.total_ms or 0) / 1e3:.2f} s"
        told += f" ({reply.mb_per_s or 0:.0f} MB/s)"
        if reply.resident_ms is not None:
            told += f", RAM resident after {reply.resident_ms / 1e3:.2f} s"
        output.message(told)
    # What an index was resolved to has the name, but not the digest of the index.
    return str(reply.digest) if reply.index and parsed.digest else source
