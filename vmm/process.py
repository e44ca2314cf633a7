"""A VMM as a process to watch, to wait for, and to end by a ladder.

A pidfd makes an exit one readable descriptor of the event loop: no thread, no SIGCHLD handler, no pid that could
meanwhile be another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, Signals, pidfd_send_signal
from typing import NamedTuple, TypeVar

import anyio
import structlog

from spec.errors import OvmsError, VmmExited, VmmTimeout
from vmm.priority import put_after
from vmm.sandbox.launching import Launched
from vmm.spawn import start

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_KILL_LIMIT_S = 30.0
"""After SIGKILL only the kernel can still hold a process (uninterruptible I/O)."""

_EXIT_FOLLOWS_S = 0.2
"""What a dying process says or closes comes before its exit can be seen: an error is worth that wait."""

_TAIL_BYTES = 2048


class Exit(NamedTuple):
    """How a process ended; both None when it was not our child, so that the kernel did not tell us."""

    code: int | None
    signal: int | None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"was killed by {Signals(self.signal).name}"
        return "ended" if self.code is None else f"exited with code {self.code}"


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of a kill ladder: ask in one way, and wait ``limit_s`` in all for the process to be gone."""

    name: str
    ask: Callable[[], Awaitable[None]]
    limit_s: float


class VmmProcess:
    """One process, from spawn (or attach) until it is reaped. Make it inside the event loop that shall watch it."""

    def __init__(self, pid: int, pidfd: int, name: str, log: Path | None, log_offset: int) -> None:
        self.pid = pid
        self.unconfined: tuple[tuple[str, str], ...] = ()
        """Layers of its confinement that it does not have, and why."""
        self._pidfd = pidfd
        self._name = name
        self._log_path = log
        self._log_offset = log_offset  # a successor appends to the same log: an error quotes only this process
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._reap)

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: Path | None = None,
        stderr: Path,
        pass_fds: Sequence[int] = (),
    ) -> VmmProcess:
        """Start ``argv`` in a session of its own; ``stdout`` (None: /dev/null) and ``stderr`` are appended to.

        ``pass_fds`` keep their numbers in the child and stay open, and the caller's, here. Raises what
        :func:`vmm.spawn.start` raises.
        """
        started = start(argv, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds)
        put_after(started.pid)
        return cls(started.pid, started.pidfd, started.name, stderr, started.log_offset)

    @classmethod
    def of(cls, launched: Launched, name: str, log: Path, log_offset: int) -> VmmProcess:
        """Watch a process that the launcher has made."""
        process = cls(launched.pid, launched.pidfd, name, log, log_offset)
        process.unconfined = launched.remarks
        return process

    @classmethod
    def attach(cls, pid: int, *, name: str = "the VMM", log: Path | None = None) -> VmmProcess:
        """Watch a process that an earlier daemon spawned; its exit code stays unknown. Raises VmmExited.

        The caller has made sure that ``pid`` is the process it means, and should look again afterwards: from here on
        the pidfd, not the number, says which process it is.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise VmmExited(f"{name} (pid {pid}) is gone", pid=pid) from error
        return cls(pid, pidfd, name, log, 0)

    @property
    def exited(self) -> Exit | None:
        """How it ended, or None while it runs."""
        return self._exit.result() if self._exit.done() else None

    async def wait(self) -> Exit:
        """Return when the process is gone and reaped; any number of tasks may wait."""
        await asyncio.wait((self._exit,))  # unlike awaiting the future, a cancelled waiter leaves it to the others
        return self._exit.result()

    def signal(self, signum: int) -> None:
        """Send a signal to this very process, never to another that got its pid; nothing if it is gone."""
        if not self._exit.done():
            with contextlib.suppress(ProcessLookupError):  # a zombie; its pidfd is readable now
                pidfd_send_signal(self._pidfd, signum)

    async def until_ready(self, ready: Awaitable[T], *, limit_s: float, what: str) -> T:
        """The result of ``ready``, raced against the exit of the process and against ``limit_s``.

        Raises VmmExited (with the end of the log), VmmTimeout, or what ``ready`` raised. ``what`` completes the
        sentence "… while waiting for the {what}".
        """
        task = asyncio.ensure_future(ready)
        try:
            await asyncio.wait((task, self._exit), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and task.exception() is not None:
                await asyncio.wait((self._exit,), timeout=_EXIT_FOLLOWS_S)
            if task.done() and (task.exception() is None or not self._exit.done()):
                return task.result()
            if self._exit.done():
                raise await self.exit_error(what)
            raise VmmTimeout(
                f"{self._name} (pid {self.pid}): no {what} after {limit_s:g} s", what=what, limit_s=limit_s
            )
        finally:
            if task.cancel():
                await asyncio.gather(task, return_exceptions=True)

    async def exit_error(self, what: str) -> VmmExited:
        """The error for a process that ended while we waited for ``what``, quoting the end of its log."""
        ended = await self.wait()
        tail = await anyio.to_thread.run_sync(self._log_tail)
        detail = f"{self._name} (pid {self.pid}) {ended} while waiting for the {what}" + (f": {tail}" if tail else "")
        return VmmExited(detail, exit_code=ended.code, signal=ended.signal, log_tail=tail)

    async def kill_ladder(self, rungs: Sequence[Rung]) -> Exit:
        """Go through the rungs until the process is gone; SIGKILL is the last whatever the table says.

        A rung that fails is left at once. Cancelled, it goes straight to SIGKILL: nothing but a reaped process is
        left behind. Several tasks may be on ladders of their own. Raises VmmTimeout only for a process that outlives
        SIGKILL, which no VMM can bring about by itself.
        """
        try:
            for rung in rungs:
                if self._exit.done():
                    break
                try:
                    async with asyncio.timeout(rung.limit_s):
                        await rung.ask()
                        await self.wait()
                except (TimeoutError, OvmsError, OSError) as error:
                    _log.debug("kill ladder", pid=self.pid, rung=rung.name, failed=str(error) or "time is up")
        finally:
            self.signal(SIGKILL)
            await self._gone()
        return self._exit.result()

    def release(self) -> None:
        """Let go of the process: it is watched no more, and goes on. Nobody may be waiting; idempotent."""
        if self._loop.remove_reader(self._pidfd):
            os.close(self._pidfd)

    def signal_rung(self, signum: Signals, limit_s: float) -> Rung:
        """The rung that sends a signal."""

        async def ask() -> None:
            self.signal(signum)

        return Rung(signum.name, ask, limit_s)

    async def _gone(self) -> None:
        """Wait for the reap; a cancellation meanwhile is kept until then."""
        cancelled: asyncio.CancelledError | None = None
        deadline = self._loop.time() + _KILL_LIMIT_S
        with anyio.CancelScope(shield=True):
            while not self._exit.done() and (left := deadline - self._loop.time()) > 0:
                try:
                    await asyncio.wait((self._exit,), timeout=left)
                except asyncio.CancelledError as error:  # a plain task.cancel() passes anyio's shield
                    cancelled = error
        if cancelled is not None:
            raise cancelled
        if not self._exit.done():
            raise VmmTimeout(f"{self._name} (pid {self.pid}) outlives SIGKILL: the kernel holds it", pid=self.pid)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        try:
            info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except ChildProcessError:  # spawned by an earlier daemon
            ended = Exit(None, None)
        else:
            # waitid returns None only with WNOHANG, which a readable pidfd makes needless.
            by_itself = info is not None and info.si_code == os.CLD_EXITED
            status = info.si_status if info is not None else None
            ended = Exit(status, None) if by_itself else Exit(None, status)
        os.close(self._pidfd)
        self._exit.set_result(ended)

    def _log_tail(self) -> str:
        if self._log_path is None:
            return ""
        try:
            with self._log_path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_offset, size - _TAIL_BYTES))
                tail = file.read(_TAIL_BYTES)
        except OSError:
            return ""
        return tail.decode(errors="replace").strip()
