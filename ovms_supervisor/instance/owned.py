"""Work that is finished, or rolled back, also when the caller who asked for it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from spec.errors import Conflict

T = TypeVar("T")


async def owned(tasks: TaskGroup, work: Callable[[], Awaitable[T]], name: str) -> T:
    """The result of ``work``, which runs as a task of the group: cancelling the caller does not touch it.

    What it raises goes to the caller and not to the group. Raises Conflict if the group ended first.
    """
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    tasks.start_soon(_run, work, outcome, name, name=name)
    return await asyncio.shield(outcome)


async def _run(work: Callable[[], Awaitable[T]], outcome: asyncio.Future[T], name: str) -> None:
    error: Exception = Conflict(f"{name}: cut short, the instance or the daemon is ending")
    try:
        outcome.set_result(await work())
    except Exception as raised:  # it is the caller's
        error = raised
    finally:
        if not outcome.done():
            outcome.set_exception(error)
            outcome.exception()  # a caller that has gone does not miss it


@asynccontextmanager
async def undone_on_failure() -> AsyncIterator[AsyncExitStack]:
    """A stack whose callbacks run, shielded from cancellation, only if the block raises."""
    stack = AsyncExitStack()
    try:
        yield stack
    except BaseException:
        with anyio.CancelScope(shield=True):
            await stack.aclose()
        raise


@asynccontextmanager
async def undone_always() -> AsyncIterator[AsyncExitStack]:
    """A stack whose callbacks run, shielded from cancellation, however the block is left."""
    stack = AsyncExitStack()
    try:
        yield stack
    finally:
        with anyio.CancelScope(shield=True):
            await stack.aclose()
