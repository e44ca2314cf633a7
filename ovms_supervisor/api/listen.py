"""The UNIX socket: ours alone or a group's, never taken from a daemon that lives, or given by systemd."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from spec.errors import DaemonRunning, InvalidConfig, PermissionMissing

MAX_PATH_BYTES = 107
"""unix(7): sun_path has 108 bytes, one of which is the closing NUL."""

_FIRST_ACTIVATED_FD = 3
BACKLOG = 4096


def activated(environ: Mapping[str, str]) -> socket.socket | None:
    """The socket that systemd (or another) has opened for us, by ``LISTEN_FDS``; None if there is none.

    Raises InvalidConfig if it isn't exactly one listening UNIX stream socket.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS", "0") == "0":
        return None
    if environ["LISTEN_FDS"] != "1":
        raise InvalidConfig(f"socket activation passed {environ['LISTEN_FDS'][:10]} sockets; exactly one is expected")
    os.set_inheritable(_FIRST_ACTIVATED_FD, False)
    given = socket.socket(fileno=_FIRST_ACTIVATED_FD)
    listens = given.family == socket.AF_UNIX and given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if not listens or given.type != socket.SOCK_STREAM:
        given.detach()
        raise InvalidConfig("socket activation passed something else than a listening UNIX stream socket")
    given.setblocking(False)
    return given


def listen(path: Path, group: str | None) -> socket.socket:
    """Listen on ``path``: mode 0660 and the group's, or 0600. Blocks (file system).

    A socket that a daemon left behind is replaced; one on which something answers is not. Raises DaemonRunning,
    InvalidConfig (path too long, not a socket, unknown group), PermissionMissing.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise InvalidConfig(
            f"{path} has more than {MAX_PATH_BYTES} bytes, the limit of a UNIX socket path",
            remedy="Name a shorter one with --socket or a shorter --run-dir.",
        )
    gid = _gid(group)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Two daemons that start at once would both find the socket stale and replace each other's.
        with path.with_name(path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _remove_stale(path)
            return _bind(path, gid)
    except PermissionError as error:
        raise PermissionMissing(f"cannot listen on {path}: {error.strerror}") from error


def remove_socket(path: Path) -> None:
    """Remove the socket of a daemon that ends. Under the lock, and only if nobody has made a new one."""
    try:
        with path.with_name(path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _remove_stale(path)
    except (OSError, DaemonRunning, InvalidConfig):
        return


def _gid(group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise InvalidConfig(f"there is no group {group!r}", remedy="Make it, or change socket_group.") from None


def _bind(path: Path, gid: int | None) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        # Nobody else may connect before mode and group are right.
        before = os.umask(0o177)
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(before)
        if gid is not None:
            os.chown(path, -1, gid)
            path.chmod(0o660)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidConfig(f"{path} is there and is not a socket", remedy="Remove it, or choose another --socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a daemon with a full backlog is alive too: EAGAIN
        result = probe.connect_ex(os.fspath(path))
    if result == errno.ECONNREFUSED:
        path.unlink()
    elif result != errno.ENOENT:
        raise DaemonRunning(f"something answers on {path}")
