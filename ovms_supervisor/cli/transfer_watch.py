"""How far a transfer of the daemon is, from its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Literal

from ovms_supervisor.cli import output
from spec.errors import OvmsError

if TYPE_CHECKING:
    from ovms_supervisor.cli.transfer_display import TransferDisplay
    from ovms_supervisor.client import Client
    from spec.api import PushReply


@asynccontextmanager
async def watched(
    client: Client, kind: Literal["pull", "push"], reference: str, display: TransferDisplay
) -> AsyncIterator[None]:
    """Show the progress of a transfer that is asked for in the block."""
    watching = asyncio.create_task(_watch(client, kind, reference, display))
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _watch(client: Client, kind: str, reference: str, display: TransferDisplay) -> None:
    begun = False
    with suppress(OvmsError):  # the transfer itself will tell
        async for event in client.events():
            if event.type != f"{kind}.progress" or event.detail.get("reference") != reference:
                continue
            if not begun:
                begun = True
                output.message(f"{kind}ing {reference}: {event.detail['digest']}")
            for blob in event.detail["blobs"]:
                display.show(blob["digest"], blob["title"], blob["state"], blob["at_bytes"], blob["size_bytes"])


def told(pushed: PushReply) -> str:
    """What a push came to, in one line."""
    sent, there, mounted = pushed.sent_bytes or 0, pushed.there_bytes or 0, pushed.mounted_bytes or 0
    parts = [f"{sent / 1e6:.1f} MB in {(pushed.total_ms or 0) / 1e3:.2f} s ({pushed.mb_per_s or 0:.0f} MB/s)"]
    if there:
        parts.append(f"{there / 1e6:.1f} MB were there")
    if mounted:
        parts.append(f"{mounted / 1e6:.1f} MB mounted from another repository")
    if pushed.signatures:
        parts.append(f"{pushed.signatures} signature manifest{'s' if pushed.signatures > 1 else ''} attached")
    line = f"pushed {pushed.reference}: {', '.join(parts)}"
    if pushed.subject == "absent":
        line += "\n  what it was made from is not in the registry; push that too to have their relation complete"
    return line
