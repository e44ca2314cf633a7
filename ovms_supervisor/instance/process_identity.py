"""Whether a pid from a journal still is the process that was meant.

A pid alone is reused, across a reboot at once. The start time (proc_pid_stat(5), field 22, clock ticks since boot)
together with the boot id is not.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from spec.errors import VmmExited

_PROC = Path("/proc")


@cache
def boot_id() -> str:
    """A random id that the kernel made when this host was booted; read once, by the search for earlier instances."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int:
    """When the process was started, in clock ticks since boot; some ten microseconds.

    Raises VmmExited if it is gone or a zombie.
    """
    try:
        fd = os.open(_PROC / str(pid) / "stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.pread(fd, 4096, 0).decode(errors="replace")
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise VmmExited(f"process {pid} is gone", pid=pid) from error
    # The command, in parentheses, may hold spaces and parentheses itself.
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise VmmExited(f"process {pid} has ended", pid=pid)
    return int(fields[19])


def is_same(pid: int, ticks: int) -> bool:
    """Whether the process with this pid is the one that was started then."""
    try:
        return start_ticks(pid) == ticks
    except VmmExited:
        return False


def has_open(pid: int, path: Path) -> bool:
    """Whether the process has the file open."""
    return any(target == str(path) for target in _descriptors(pid))


def processes_of(instances: Path) -> dict[int, str]:
    """By pid: the instance whose VMM it is, whatever the journals say.

    A VMM leads its session and has the log of its instance as standard error. That also finds one whose pid the
    daemon had no time to write down, and not the operator's ``tail -f`` of that log.
    """
    found: dict[int, str] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            log = (entry / "fd/2").readlink()
            if log.is_relative_to(instances) and os.getsid(int(entry.name)) == int(entry.name):
                found[int(entry.name)] = log.relative_to(instances).parts[0]
        except OSError:  # gone meanwhile, or another user's
            continue
    return found


def _descriptors(pid: int) -> list[str]:
    targets: list[str] = []
    try:
        for entry in (_PROC / str(pid) / "fd").iterdir():
            try:
                targets.append(str(entry.readlink()))
            except FileNotFoundError:
                continue
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return targets
