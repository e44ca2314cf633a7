"""Starting a VMM: ``os.posix_spawn``, which costs the same whatever the size of the daemon, where a fork does not."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGSTOP, valid_signals

from spec.errors import CapacityExceeded, FileMissing, MissingTool, NoSpace, OvmsError, PermissionMissing

_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""All that a VMM inherits: the daemon's environment may hold registry passwords and tokens."""


@dataclass(frozen=True, slots=True)
class Started:
    """A child that runs; ``pidfd`` is the caller's to close."""

    pid: int
    pidfd: int
    name: str
    log_offset: int
    """The size of the log before it wrote any."""


def start(
    argv: Sequence[str], *, stdin: int | None, stdout: Path | None, stderr: Path, pass_fds: Sequence[int]
) -> Started:
    """Start ``argv`` in a session of its own, with a clean environment and no signal ignored or blocked.

    ``stdout`` (None: /dev/null) and ``stderr`` are appended to. Of our descriptors the child has ``pass_fds`` alone,
    under the same numbers: all others are close-on-exec, as Python makes them. Raises MissingTool, FileMissing,
    PermissionMissing, NoSpace, CapacityExceeded.
    """
    program = find_program(argv[0])
    if any(fd < 3 for fd in pass_fds):
        raise ValueError("descriptors 0 to 2 are the standard streams")
    streams, log_offset = open_streams(program, stdout, stderr)
    null, out, err = streams
    try:
        pid = os.posix_spawn(
            program,
            list(argv),
            clean_environment(),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null if stdin is None else stdin, 0),
                (os.POSIX_SPAWN_DUP2, out, 1),
                (os.POSIX_SPAWN_DUP2, err, 2),
                # A dup2 onto itself clears close-on-exec in the child alone (POSIX.1-2024, glibc ≥ 2.29).
                *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in pass_fds),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=valid_signals() - {SIGKILL, SIGSTOP},  # Python ignores SIGPIPE
        )
        return Started(pid, _pidfd_of_child(pid), Path(program).name, log_offset)
    except OSError as error:
        raise _spawn_error(program, error) from error
    finally:
        for fd in streams:
            os.close(fd)


def find_program(name: str) -> str:
    """The path of an executable program, searched in PATH unless the name is a path. Raises MissingTool."""
    program = shutil.which(name)
    if program is None:
        raise MissingTool(f"{name} is not an executable program", tool=name)
    return program


def open_streams(program: str, stdout: Path | None, stderr: Path) -> tuple[list[int], int]:
    """Descriptors for the standard streams of a child, the caller's to close, and the size of its log before it wrote.

    Raises FileMissing, PermissionMissing, NoSpace, CapacityExceeded.
    """
    opened: list[int] = []
    try:
        opened.append(os.open(os.devnull, os.O_RDWR))
        opened.append(os.open(os.devnull, os.O_RDWR) if stdout is None else _open_appending(stdout))
        opened.append(_open_appending(stderr))
        return opened, os.lseek(opened[2], 0, os.SEEK_END)
    except OSError as error:
        for fd in opened:
            os.close(fd)
        raise _spawn_error(program, error) from error


def clean_environment() -> dict[str, str]:
    """The part of our environment that a VMM is given."""
    return {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}


def _open_appending(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)


def _pidfd_of_child(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:  # descriptors exhausted: a child that we can't watch must not stay
        os.kill(pid, SIGKILL)
        os.waitpid(pid, 0)
        raise


def _spawn_error(program: str, error: OSError) -> OvmsError:
    """An OSError of opening the logs or of posix_spawn as one of ours."""
    detail = f"cannot start {program}: {error.strerror}" + (f" ({error.filename})" if error.filename else "")
    match error.errno:
        case errno.EMFILE | errno.ENFILE | errno.EAGAIN | errno.ENOMEM:
            return CapacityExceeded(detail, remedy="Raise the limits of open files and processes, or stop instances.")
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpace(detail)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PermissionMissing(detail)
        case errno.ENOEXEC:
            return MissingTool(detail, tool=program)
        case _:
            return FileMissing(detail)
