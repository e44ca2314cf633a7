"""Several transfers at the same time, but not too many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")


async def side_by_side(job: Callable[[S], Awaitable[T]], items: Iterable[S], limit: int) -> list[T]:
    """The results of a job for each item, in their order, at most ``limit`` at once.

    The first that fails ends the others, and its error is raised as it is: one is what the user can act on.
    """
    free = asyncio.Semaphore(limit)

    async def run(item: S) -> T:
        async with free:
            return await job(item)

    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(item)) for item in items]
    except BaseExceptionGroup as errors:
        failure = errors.exceptions[0]
    if failure is not None:
        raise failure
    return [task.result() for task in tasks]
