"""Blocking work in threads, of which none is ever left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


async def finish_in_thread(job: Callable[[], T], limiter: CapacityLimiter, stop: threading.Event | None = None) -> T:
    """Run a job in a thread; if cancelled, set ``stop`` and wait for the job's end before the cancellation goes on.

    Without this a cancelled task would give up what the job still works on: the thread can't be interrupted.
    """
    running = asyncio.ensure_future(to_thread.run_sync(job, limiter=limiter))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        await ended(running)
        raise


async def ended(running: asyncio.Future[T]) -> None:
    """Wait for the end of what must not be left alone, however often we are cancelled; its result is nobody's."""
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            continue  # the first one is on its way already
    if not running.cancelled():
        running.exception()  # seen: the cancellation is what the caller gets
