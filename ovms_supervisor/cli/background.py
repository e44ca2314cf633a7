"""Start the daemon on behalf of a command, once however many commands want it; find it; stop it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket as sockets
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ovms_supervisor.cli import output
from spec.errors import DaemonUnreachable, PermissionMissing, VmmTimeout

if TYPE_CHECKING:
    from ovms_supervisor.cli.invocation import Invocation
    from ovms_supervisor.config import Settings

START_LIMIT_S = 30.0
_MAX_EXTENSION_S = 300.0
_ANSWER_LIMIT_S = 2.0
_LOG_TAIL_BYTES = 2000


def answers(socket: Path) -> bool:
    """Whether a daemon serves HTTP there. Raises PermissionMissing if one may, but not to this user."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_LIMIT_S)
        try:
            connection.connect(os.fspath(socket))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: ovms\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
        except PermissionError as error:
            raise PermissionMissing(
                f"the daemon's socket {socket} is not open to this user",
                remedy="Join the group of the socket (socket_group), or use a daemon of your own with --run-dir.",
            ) from error
        except OSError:
            return False


def owner(socket: Path) -> int | None:
    """The process that listens on the socket, by the kernel's word (SO_PEERCRED), or None if nobody does."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_LIMIT_S)
        try:
            connection.connect(os.fspath(socket))
        except OSError:
            return None
        credentials = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        return int(pid)


def log_file(settings: Settings) -> Path:
    """Where a daemon in the background writes its log."""
    return settings.run_dir / "daemon.log"


def ensure(invocation: Invocation) -> None:
    """Start a daemon in the background, and say so, if none answers. Raises DaemonUnreachable, PermissionMissing."""
    settings = invocation.settings
    if not answers(settings.socket):
        pid = start(settings, invocation.arguments())
        if pid is not None:
            output.message(f"started the daemon (pid {pid}), log {log_file(settings)}")


def start(settings: Settings, arguments: list[str]) -> int | None:
    """Start ``ovm serve`` in a session of its own and wait until it is ready.

    Returns its pid, or None if another command's daemon was first. Raises DaemonUnreachable with the end of its log
    if it ends, or says nothing for too long.
    """
    from ovms_supervisor.config.directories import secure_directory
    from ovms_supervisor.log_file import open_log

    secure_directory(settings.run_dir, 0o711 if settings.socket_group else 0o700)
    with _one_at_a_time(settings.run_dir), _notifications() as (notified, address):
        if answers(settings.socket):
            return None
        log = log_file(settings)
        descriptor = open_log(log)
        try:
            begin = os.fstat(descriptor).st_size
            child = subprocess.Popen(
                [sys.executable, "-m", "ovms_supervisor.cli", *arguments, "serve", "--background"],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
                env={**os.environ, "NOTIFY_SOCKET": address},
            )
        finally:
            os.close(descriptor)
        outcome = _wait_until_ready(child, notified)
        if outcome == "ready" and answers(settings.socket):
            return child.pid
        if outcome == "ended" and answers(settings.socket):
            return None  # an 'ovm serve' by hand was faster
    what = f"ended at once (exit code {child.returncode})" if outcome == "ended" else "does not get ready"
    raise DaemonUnreachable(
        f"the daemon (pid {child.pid}) {what}: {_said(log, begin)}",
        remedy=f"See {log}, or run 'ovm serve' in the foreground.",
    )


@contextlib.contextmanager
def _one_at_a_time(run_dir: Path) -> Iterator[None]:
    """Of several commands that miss the daemon at the same time one starts it, the others wait for that."""
    descriptor = os.open(run_dir / "start.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _notifications() -> Iterator[tuple[sockets.socket, str]]:
    """A socket for what the daemon would tell a service manager (sd_notify(3)), and its address for NOTIFY_SOCKET."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM | sockets.SOCK_CLOEXEC) as listener:
        listener.bind("")  # the kernel chooses a free abstract address
        yield listener, "@" + os.fsdecode(listener.getsockname()[1:])


def _wait_until_ready(child: subprocess.Popen[bytes], notified: sockets.socket) -> Literal["ready", "ended", "late"]:
    """What comes first: its word, its end, or the limit, which it may put off (EXTEND_TIMEOUT_USEC, sd_notify(3))."""
    limit = time.monotonic() + START_LIMIT_S
    process = os.pidfd_open(child.pid)
    try:
        while (left_s := limit - time.monotonic()) > 0:
            seen, _, _ = select.select([notified.fileno(), process], [], [], left_s)
            if notified.fileno() in seen:
                words = notified.recv(4096).splitlines()
                if b"READY=1" in words:
                    return "ready"
                limit = max(limit, time.monotonic() + _extension_s(words))
            if process in seen:
                child.wait()
                return "ended"
        return "late"
    finally:
        os.close(process)


def _extension_s(words: list[bytes]) -> float:
    """How much longer the daemon asks us to wait."""
    for word in words:
        name, _, value = word.partition(b"=")
        if name == b"EXTEND_TIMEOUT_USEC" and value.isdigit():
            return min(int(value) / 1e6, _MAX_EXTENSION_S)
    return 0.0


def _said(log: Path, begin: int) -> str:
    """The last lines of the log since ``begin``, as a part of a sentence."""
    with log.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(begin if begin <= size_bytes else 0, size_bytes - _LOG_TAIL_BYTES))  # it may have been rotated
        lines = [line.strip().removeprefix("ovm: ") for line in file.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("remedy:")]
    return "; ".join(lines[-3:]) or "it said nothing"


def stop(socket: Path, limit_s: float) -> int | None:
    """Ask the daemon behind the socket to end and wait until it has. Returns its pid, or None if there was none."""
    pid = owner(socket)
    if pid is None:
        return None
    if pid == 1:
        raise PermissionMissing(
            f"{socket} belongs to systemd", remedy="Stop the daemon with 'systemctl stop ovms.service ovms.socket'."
        )
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGTERM)
        gone = select.poll()
        gone.register(process, select.POLLIN)
        if not gone.poll(limit_s * 1000):
            raise VmmTimeout(f"the daemon (pid {pid}) still runs {limit_s:.0f} s after SIGTERM", remedy="See its log.")
    except PermissionError as error:
        raise PermissionMissing(f"the daemon (pid {pid}) belongs to another user") from error
    finally:
        os.close(process)
    return pid
