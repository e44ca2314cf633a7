"""Limits that bite when there are many machines, each told as the number of machines that it allows."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from ovms_supervisor.cli.doctor.finding import Finding, ok, read_number, read_text, warn

if TYPE_CHECKING:
    from ovms_supervisor.config import Settings

DESCRIPTORS_PER_MACHINE = 5
"""Of the daemon's: pidfd, console, its index, events, and while a clone is parked the control connection."""
_CAN_RAISE_LIMITS = 24  # CAP_SYS_RESOURCE, capabilities(7)
TASKS_PER_MACHINE = 7
"""Cloud Hypervisor's threads with one vCPU; QEMU has fewer. The kernel counts threads like processes."""
WATCHES_PER_MACHINE = 1
_MACHINES = 1000
"""What a host should be able to hold before a warning is silent."""
_SPARE_DESCRIPTORS = 256
_SPARE_TASKS = 300


def open_files(_: Settings) -> Finding:
    """RLIMIT_NOFILE; the daemon raises its own as far as it may: to fs.nr_open, or to the hard limit."""
    _soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return ok("open files", "unlimited")
    if _may_raise_limits():
        most = max(most, read_number("/proc/sys/fs/nr_open") or 0)
    return _judged(
        "open files",
        f"{most} at most",
        (most - _SPARE_DESCRIPTORS) // DESCRIPTORS_PER_MACHINE,
        f"{DESCRIPTORS_PER_MACHINE} each",
        "LimitNOFILE=1048576 in the unit, or limits.conf.",
    )


def processes(_: Settings) -> Finding:
    """The least of pid_max, threads-max, RLIMIT_NPROC and the pids.max of our cgroups."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NPROC)
    limits = {
        "kernel.pid_max": read_number("/proc/sys/kernel/pid_max") or 32768,
        "kernel.threads-max": read_number("/proc/sys/kernel/threads-max") or 32768,
    }
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:  # root is not held to it
        limits["RLIMIT_NPROC"] = soft
    if (group := _pids_max()) is not None:
        limits["pids.max of the cgroup"] = group
    name, most = min(limits.items(), key=lambda each: each[1])
    remedies = {
        "RLIMIT_NPROC": "LimitNPROC=infinity in the unit, or limits.conf.",
        "pids.max of the cgroup": "TasksMax=infinity in the unit.",
    }
    return _judged(
        "processes",
        f"{most} at most ({name})",
        (most - _SPARE_TASKS) // TASKS_PER_MACHINE,
        f"a machine is a process of {TASKS_PER_MACHINE} threads",
        remedies.get(name, f"sysctl {name}=4194304" if name == "kernel.pid_max" else f"sysctl {name}=1000000"),
    )


def inotify(_: Settings) -> Finding:
    """Watches and instances of inotify for this user; the daemon has a few instances and watches consoles."""
    watches = read_number("/proc/sys/fs/inotify/max_user_watches") or 0
    instances = read_number("/proc/sys/fs/inotify/max_user_instances") or 0
    figure = f"{watches} watches, {instances} instances"
    remedy = "sysctl fs.inotify.max_user_watches=65536 fs.inotify.max_user_instances=512"
    if instances < 16:
        return warn("inotify", figure, "consoles can't be followed", remedy)
    return _judged("inotify", figure, watches // WATCHES_PER_MACHINE, "consoles that are followed", remedy)


def _judged(check: str, figure: str, machines: int, counting: str, remedy: str) -> Finding:
    machines = max(0, machines)
    figure = f"{figure}: about {machines} machines ({counting})"
    if machines < _MACHINES:
        return warn(check, figure, f"fewer than {_MACHINES} machines", remedy)
    return ok(check, figure)


def _may_raise_limits() -> bool:
    """Whether hard limits are none for us; root in a container may lack that."""
    for line in (read_text("/proc/self/status") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> _CAN_RAISE_LIMITS & 1)
    return False


def _pids_max() -> int | None:
    """The least pids.max of the cgroups (v2) that we are in; None if none says anything."""
    found: list[int] = []
    for line in (read_text("/proc/self/cgroup") or "").splitlines():
        number, _, path = line.split(":", 2)
        if number != "0":
            continue
        group = Path("/sys/fs/cgroup") / path.lstrip("/")
        limits = (read_number(str(each / "pids.max")) for each in (group, *group.parents))
        found += [most for most in limits if most is not None]
    return min(found, default=None)
