"""Two things at once where one would wait for the other for no reason."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def side_by_side(work: Coroutine[Any, Any, T], beside: Coroutine[Any, Any, object]) -> T:
    """The result of ``work`` when both have come to their ends; what either raises is raised as it is, not in a group.

    ``beside`` is short: it is finished also if ``work`` fails or the caller is cancelled, and never left running.
    """
    other = asyncio.ensure_future(beside)
    try:
        result = await work
    finally:
        with anyio.CancelScope(shield=True):
            await asyncio.wait((other,))
        other.cancelled() or other.exception()  # seen, if it is not the one that is raised
    await other
    return result
