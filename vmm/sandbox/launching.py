"""The daemon's side of the launcher: starts it when first needed, gives it orders, hears what became of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from spec.errors import CapacityExceeded, HostLimit, OvmsError, VmmTimeout
from vmm.sandbox.orders import MAX_BYTES, SHARED_BY_ALL, Order, receive
from vmm.spawn import start

_PROGRAM: Final = Path(__file__).with_name("launcher.py")
_LIMIT_S: Final = 30.0
_MAX_TOLD_BYTES: Final = 64 << 10
_STANDBY: Final = 2
_RELIEF_S: Final = 0.05
_FAREWELL_S: Final = 5.0

_Reply = tuple[dict[str, Any], list[int]]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Launched:
    """A confined child of ours that executes its program; ``pidfd`` is the caller's to close."""

    pid: int
    pidfd: int
    remarks: tuple[tuple[str, str], ...]
    """Layers that could not be had, and why."""


@dataclass(frozen=True, slots=True)
class _Standby:
    """A prepared child of ours that waits at ``control`` for the order that it will execute."""

    pid: int
    pidfd: int
    told: int
    control: socket.socket

    def dismiss(self) -> None:
        self.control.close()
        os.close(self.told)
        _end(self.pidfd)


class Launcher:
    """One per daemon and event loop. Ends with :meth:`close`, or with the daemon, however that ends.

    Half of what confinement costs a start is done before: some processes stand by, in namespaces of their own and with
    programs in view, for the next orders of the form of the latest one.
    """

    def __init__(self, log: Path) -> None:
        """``log`` takes what the launcher says on stderr, which is nothing as long as it is sound."""
        self._log_file = log
        self._socket: socket.socket | None = None
        self._pid = self._pidfd = -1
        self._form = b""
        self._standby: deque[_Standby] = deque()
        self._coming = 0
        self._closed = False
        self._ended = asyncio.Event()
        self._waiting: deque[Callable[[_Reply], None]] = deque()

    @property
    def pid(self) -> int | None:
        """The launcher's process; None while there is none."""
        return self._pid if self._socket is not None else None

    @property
    def standing_by(self) -> list[int]:
        """The processes that wait for an order."""
        return [each.pid for each in self._standby]

    async def launch(self, order: Order, fds: Sequence[int]) -> Launched:
        """Start a confined program; ``fds`` are its standard streams, then those that ``order.fds`` numbers.

        Raises HostLimit for a layer that a strict order needs, or a program that can't be executed, CapacityExceeded,
        VmmTimeout. Cancelled, it leaves no process behind.
        """
        message = order.encode()
        if len(message) > MAX_BYTES:
            raise HostLimit(f"the confinement of a VMM takes {len(message)} bytes to describe, {MAX_BYTES} at most")
        form = order.form().encode()
        standby = self._take(form)
        asyncio.get_running_loop().call_later(_RELIEF_S, self._relieve, form)
        if standby is not None and _told(standby, message, fds):
            with standby.control:  # as long as it is held, it is ours
                return await _executed(standby.pid, standby.pidfd, standby.told)
        reply: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        self._send(message, fds, reply.set_result)
        try:
            async with asyncio.timeout(_LIMIT_S):
                answer, passed = await asyncio.shield(reply)
        except BaseException as error:
            reply.add_done_callback(_end_unwanted)
            if isinstance(error, TimeoutError):
                raise VmmTimeout("the launcher of VMMs does not answer", limit_s=_LIMIT_S) from error
            raise
        if "pid" not in answer:
            raise HostLimit(f"a VMM cannot be started in confinement: {answer.get('error', 'no reason given')}")
        return await _executed(answer["pid"], passed[0], passed[1])

    async def close(self) -> None:
        """End the launcher, and what stands by; what has been launched goes on. Idempotent."""
        self._closed = True
        while self._standby:
            self._standby.pop().dismiss()
        if self._socket is None:
            return
        # It ends when it has read what was sent, and answered: so we know of every child that it has made.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._ended.wait()
        self._end_process()

    def _end_process(self) -> None:
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        _end(self._pidfd)
        self._ended.set()
        while self._waiting:
            self._waiting.popleft()(({"error": "the launcher has ended"}, []))

    def _take(self, form: bytes) -> _Standby | None:
        if form != self._form:
            while self._standby:
                self._standby.pop().dismiss()
            self._form = form
        return self._standby.popleft() if self._standby else None

    def _relieve(self, form: bytes) -> None:
        """Have as many stand by as there should be: when a start is over, so as not to slow it."""
        while not self._closed and form == self._form and len(self._standby) + self._coming < _STANDBY:
            try:
                self._send(form, [], partial(self._stands_by, form))
            except (OSError, OvmsError) as error:
                _log.warning("no process can stand by for VMMs", why=str(error))
                return
            self._coming += 1

    def _stands_by(self, form: bytes, reply: _Reply) -> None:
        self._coming -= 1
        answer, passed = reply
        if "pid" not in answer:
            _log.warning("no process stands by for VMMs", why=answer.get("error"))
            return
        standby = _Standby(answer["pid"], passed[0], passed[1], socket.socket(fileno=passed[2]))
        if self._closed or form != self._form:
            standby.dismiss()
        else:
            standby.control.setblocking(False)
            self._standby.append(standby)

    def _send(self, message: bytes, fds: Sequence[int], reply: Callable[[_Reply], None]) -> None:
        if self._socket is None:
            self._begin()
        assert self._socket is not None  # noqa: S101
        try:
            socket.send_fds(self._socket, [message], list(fds))
        except BlockingIOError as error:
            raise CapacityExceeded("too many VMMs are being started at once") from error
        except OSError:
            self._end_process()  # it has died; a new one takes the order
            self._begin()
            socket.send_fds(self._socket, [message], list(fds))
        self._waiting.append(reply)

    def _begin(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with its:
            ours.setblocking(False)
            shared = sorted(SHARED_BY_ALL) if os.geteuid() == 0 else []
            argv = [sys.executable, "-I", "-S", str(_PROGRAM), str(its.fileno()), *shared]
            try:
                started = start(argv, stdin=None, stdout=None, stderr=self._log_file, pass_fds=[its.fileno()])
            except BaseException:
                ours.close()
                raise
        self._socket, self._pid, self._pidfd = ours, started.pid, started.pidfd
        self._ended.clear()
        asyncio.get_running_loop().add_reader(ours, self._receive)

    def _receive(self) -> None:
        assert self._socket is not None  # noqa: S101 - the reader goes with it
        try:
            message, fds = receive(self._socket, 8)
        except BlockingIOError:
            return
        except OSError:
            message, fds = b"", []
        if not message:
            if not self._closed:
                _log.warning("the launcher of VMMs has ended", waiting=len(self._waiting))
            self._end_process()
            return
        self._waiting.popleft()((json.loads(message), fds))


def _told(standby: _Standby, message: bytes, fds: Sequence[int]) -> bool:
    """Give a process that stands by its order. False if it is gone: something has killed it."""
    try:
        socket.send_fds(standby.control, [message], list(fds))
    except OSError as error:
        _log.warning("a process that stood by for a VMM is gone", pid=standby.pid, why=str(error))
        standby.dismiss()
        return False
    return True


async def _executed(pid: int, pidfd: int, pipe: int) -> Launched:
    """Wait until the program runs, which closes the pipe, and read what was told before."""
    try:
        told = await _read_to_end(pipe)
        remarks: tuple[tuple[str, str], ...] = ()
        for line in told.splitlines():
            part = json.loads(line)
            if "failed" in part:
                raise HostLimit(f"a VMM cannot be started in confinement: {part['failed']}")
            remarks = tuple((str(layer), str(why)) for layer, why in part["remarks"])
    except BaseException:
        _end(pidfd)
        raise
    return Launched(pid, pidfd, remarks)


async def _read_to_end(pipe: int) -> bytes:
    loop = asyncio.get_running_loop()
    os.set_blocking(pipe, False)
    told = bytearray()
    ended: asyncio.Future[None] = loop.create_future()

    def read() -> None:
        try:
            piece = os.read(pipe, _MAX_TOLD_BYTES)
        except BlockingIOError:
            return
        told.extend(piece[: _MAX_TOLD_BYTES - len(told)])
        if not piece and not ended.done():
            loop.remove_reader(pipe)
            ended.set_result(None)

    loop.add_reader(pipe, read)
    try:
        async with asyncio.timeout(_LIMIT_S):
            await ended
    except TimeoutError as error:
        raise VmmTimeout("a confined process does not come to execute its program", limit_s=_LIMIT_S) from error
    finally:
        loop.remove_reader(pipe)
        os.close(pipe)
    return bytes(told)


def _end_unwanted(reply: asyncio.Future[_Reply]) -> None:
    """Nobody waits for this process any more."""
    if reply.cancelled():
        return
    answer, passed = reply.result()
    if "pid" in answer:
        os.close(passed[1])
        _end(passed[0])


def _end(pidfd: int) -> None:
    """Kill a child and reap it: one before its exec, or just after, is gone at once."""
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    finally:
        os.close(pidfd)
