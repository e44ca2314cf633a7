"""Limits that bite when there are many machines."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from ovms_supervisor.cli.doctor.finding import Finding, ok, read_number, warn

if TYPE_CHECKING:
    from ovms_supervisor.config import Settings

_DESCRIPTORS_PER_MACHINE = 6
_WATCHES_PER_MACHINE = 2
_MACHINES = 1000
"""What a host should be able to hold before a warning is silent."""


def open_files(_: Settings) -> Finding:
    """RLIMIT_NOFILE; the daemon raises its own to the hard limit."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return ok("open files", "unlimited")
    if hard < _DESCRIPTORS_PER_MACHINE * _MACHINES:
        why = f"enough for about {hard // _DESCRIPTORS_PER_MACHINE} machines"
        return warn("open files", f"{hard} at most", why, "LimitNOFILE=1048576 in the unit, or limits.conf.")
    return ok("open files", f"{hard} at most")


def processes(_: Settings) -> Finding:
    """RLIMIT_NPROC and the kernel's pid_max; a machine is a process of several threads."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NPROC)
    pid_max = read_number("/proc/sys/kernel/pid_max") or 32768
    most = pid_max if soft == resource.RLIM_INFINITY else min(soft, pid_max)
    if most < 8 * _MACHINES:
        return warn("processes", f"{most} at most", f"enough for about {most // 8} machines", "sysctl kernel.pid_max=…")
    return ok("processes", f"{most} at most")


def inotify(_: Settings) -> Finding:
    """Watches and instances of inotify for this user; the daemon has one instance and watches consoles."""
    watches = read_number("/proc/sys/fs/inotify/max_user_watches") or 0
    instances = read_number("/proc/sys/fs/inotify/max_user_instances") or 0
    figure = f"{watches} watches, {instances} instances"
    if watches < _WATCHES_PER_MACHINE * _MACHINES or instances < 16:
        remedy = "sysctl fs.inotify.max_user_watches=65536 fs.inotify.max_user_instances=512"
        return warn("inotify", figure, "the consoles of many machines can't be followed", remedy)
    return ok("inotify", figure)
