"""The few threads in which console files are read and indexed.

Not anyio's: an aiohttp handler is cancelled natively, which abandons ``to_thread.run_sync`` in the middle. Here the
work always comes to its end, and what depends on it (closing descriptors, waking readers) hangs on the future, not
on the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_pool = ThreadPoolExecutor(4, thread_name_prefix="console-logs")


def submit(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Start a function in a thread; an exception that nobody waits for any more is dropped."""
    future = asyncio.wrap_future(_pool.submit(function, *args, **kwargs))
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread; a caller that is cancelled leaves it running to its end."""
    return await asyncio.shield(submit(function, *args, **kwargs))
