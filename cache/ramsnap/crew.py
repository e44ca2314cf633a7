"""The threads that decode, one for each processor, shared by all images that are being loaded: each has its turn.

With threads of its own for every image, the first large ones would hold up a small one, or all together would be more
than the processors can use, each with buffers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Crew:
    """Thread-safe. The threads live as long as there is a member."""

    def __init__(self, threads: int, *, name: str) -> None:
        self.size = threads
        self._name = name
        self._changed = threading.Condition()
        self._turns: deque[_Member] = deque()
        """Those that have jobs, the next one first."""
        self._members: set[_Member] = set()
        self._threads: list[threading.Thread] = []

    def join(self) -> Executor:
        """What does the jobs of one image, in their order, until it is shut down."""
        member = _Member(self)
        with self._changed:
            self._members.add(member)
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._work, name=f"{self._name}-{number}") for number in range(self.size)
                ]
                for thread in self._threads:
                    thread.start()
        return member

    def add(self, member: _Member, future: Future[Any], job: Callable[[], Any]) -> None:
        """Have a job done when the member's turn comes."""
        with self._changed:
            if member not in self._members:
                raise RuntimeError("a job after the shutdown")
            member.jobs.append((future, job))
            if len(member.jobs) == 1:
                self._turns.append(member)
            self._changed.notify_all()

    def leave(self, member: _Member) -> None:
        """Drop the member's jobs that have not begun, and wait for those that have."""
        with self._changed:
            self._members.discard(member)
            dropped, member.jobs = member.jobs, deque()
            if dropped:
                self._turns.remove(member)
            while member.running:
                self._changed.wait()
            ended: list[threading.Thread] = []
            if not self._members:
                ended, self._threads = self._threads, []
            self._changed.notify_all()
        for future, _ in dropped:
            future.cancel()
        for thread in ended:
            thread.join()

    def _work(self) -> None:
        me = threading.current_thread()
        while (member := self._next(me)) is not None:
            member.work()
            with self._changed:
                member.running -= 1
                self._changed.notify_all()

    def _next(self, me: threading.Thread) -> _Member | None:
        """The one whose turn it is; None: nobody needs this thread any more."""
        with self._changed:
            while me in self._threads:
                if self._turns:
                    member = self._turns.popleft()
                    member.begun.append(member.jobs.popleft())
                    member.running += 1
                    if member.jobs:
                        self._turns.append(member)
                    return member
                self._changed.wait()
            return None


class _Member(Executor):
    """An image's share of the crew, whose lock guards it."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self.jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self.begun: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        """Taken by a thread that is about to do them."""
        self.running = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have it done in its turn."""
        future: Future[T] = Future()
        self._crew.add(self, future, lambda: fn(*args, **kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Drop what has not begun, wait for the rest, whatever the arguments. Idempotent."""
        self._crew.leave(self)

    def work(self) -> None:
        """In a thread of the crew: do a job that has begun."""
        future, job = self.begun.popleft()
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)
