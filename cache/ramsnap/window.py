"""A thread pool that is never asked for more than it can soon do: what bounds the memory of the codec."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_MAX_THREADS = 8
"""More don't help: memory bandwidth, not the cores, is the limit then; and each holds about 16 MiB."""


def default_threads() -> int:
    """As many as this process may use processors, at most 8."""
    return min(len(os.sched_getaffinity(0)), _MAX_THREADS)


class Window(Generic[T]):
    """At most ``threads + 2`` jobs at a time; their results come back in the order of submission.

    A job's exception is raised by the call that takes its result. Leaving the context waits for jobs that run and
    drops those that don't, so nothing of them outlives it.
    """

    def __init__(self, threads: int, *, niceness: int = 0, name: str, executor: Executor | None = None) -> None:
        """``executor``: does the jobs, instead of threads of its own, and is shut down with this."""
        self._executor = executor or ThreadPoolExecutor(
            threads, thread_name_prefix=name, initializer=_lower_priority, initargs=(niceness,)
        )
        self._jobs: deque[Future[T]] = deque()
        self._limit = threads + 2

    @property
    def full(self) -> bool:
        """Whether :meth:`take` must be called before the next :meth:`submit`."""
        return len(self._jobs) >= self._limit

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Queue a job."""
        self._jobs.append(self._executor.submit(job, *args, **kwargs))

    def take(self) -> T:
        """Wait for the oldest job; its result."""
        return self._jobs.popleft().result()

    def close(self) -> None:
        """Drop what has not begun, wait for the rest."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._jobs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lower_priority(niceness: int) -> None:
    if niceness:  # Linux keeps it per thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
