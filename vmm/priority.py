"""The daemon before its guests: what decides is answered also while guests keep all processors busy.

A guest that computes takes its whole share of a processor, and a daemon among sixty of them gets a sixtieth. So the
daemon's own threads, which work in bursts of a millisecond, come first where they may; VMMs get the niceness that
the daemon was started with. Linux keeps niceness per thread, and gives it on to threads and processes that are made.
"""

from __future__ import annotations

import os

_of_vmms: int | None = None


def put_first(niceness: int) -> None:
    """Raise the priority of this thread, and of those that it will make, if that is allowed. Before any is made."""
    global _of_vmms
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness >= before:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
    except PermissionError:  # an ordinary user's daemon is one of many programs
        return
    _of_vmms = before


def niceness_of_vmms() -> int | None:
    """What a VMM is to be given; None if it inherits the right one."""
    return _of_vmms


def put_after(pid: int) -> None:
    """Give a process that has just been made the priority of a VMM. It is no error if it is gone."""
    if _of_vmms is not None:
        try:
            os.setpriority(os.PRIO_PROCESS, pid, _of_vmms)
        except ProcessLookupError:
            return
