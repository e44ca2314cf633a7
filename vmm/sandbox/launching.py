"""The daemon's side of the launcher: starts it when first needed, gives it orders, hears what became of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from spec.errors import CapacityExceeded, HostLimit, VmmTimeout
from vmm.sandbox.orders import MAX_BYTES, SHARED_BY_ALL, Order, receive
from vmm.spawn import start

_PROGRAM: Final = Path(__file__).with_name("launcher.py")
_LIMIT_S: Final = 30.0
_MAX_TOLD_BYTES: Final = 64 << 10

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Launched:
    """A confined child of ours that executes its program; ``pidfd`` is the caller's to close."""

    pid: int
    pidfd: int
    remarks: tuple[tuple[str, str], ...]
    """Layers that could not be had, and why."""


class Launcher:
    """One per daemon and event loop. Ends with :meth:`close`, or with the daemon, however that ends."""

    def __init__(self, log: Path) -> None:
        """``log`` takes what the launcher says on stderr, which is nothing as long as it is sound."""
        self._log_file = log
        self._socket: socket.socket | None = None
        self._pid = self._pidfd = -1
        self._waiting: deque[asyncio.Future[tuple[dict[str, Any], list[int]]]] = deque()

    @property
    def pid(self) -> int | None:
        """The launcher's process; None while there is none."""
        return self._pid if self._socket is not None else None

    async def launch(self, order: Order, fds: Sequence[int]) -> Launched:
        """Start a confined program; ``fds`` are its standard streams, then those that ``order.fds`` numbers.

        Raises HostLimit for a layer that a strict order needs, or a program that can't be executed, CapacityExceeded,
        VmmTimeout. Cancelled, it leaves no process behind.
        """
        message = order.encode()
        if len(message) > MAX_BYTES:
            raise HostLimit(f"the confinement of a VMM takes {len(message)} bytes to describe, {MAX_BYTES} at most")
        reply: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._send(message, fds, reply)
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

    def close(self) -> None:
        """End the launcher; what it has launched goes on. Idempotent."""
        if self._socket is None:
            return
        with suppress(RuntimeError):  # the loop may be closed already
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        _end(self._pidfd)
        while self._waiting:
            self._waiting.popleft().set_result(({"error": "the launcher has ended"}, []))

    def _send(
        self, message: bytes, fds: Sequence[int], reply: asyncio.Future[tuple[dict[str, Any], list[int]]]
    ) -> None:
        if self._socket is None:
            self._begin()
        assert self._socket is not None  # noqa: S101
        try:
            socket.send_fds(self._socket, [message], list(fds))
        except BlockingIOError as error:
            raise CapacityExceeded("too many VMMs are being started at once") from error
        except OSError:
            self.close()  # it has died; a new one takes the order
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
            _log.warning("the launcher of VMMs has ended", waiting=len(self._waiting))
            self.close()
            return
        reply = self._waiting.popleft()
        reply.set_result((json.loads(message), fds))


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


def _end_unwanted(reply: asyncio.Future[tuple[dict[str, Any], list[int]]]) -> None:
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
