"""What the kernel counts of a process's memory as it goes along: ``/proc/PID/status`` (proc_pid_status(5)).

Unlike smaps this walks no page table: reading it takes some ten microseconds whatever the size of the guest, and takes
no lock that a guest's page faults wait for. So it is read in the event loop, for thousands of machines too. Kernels
since 6.2 count per CPU and may be some hundred kilobytes behind.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from spec.errors import PermissionMissing, VmmExited

_COUNTERS = re.compile(rb"^RssAnon:\s+(\d+) kB\nRssFile:\s+(\d+) kB\nRssShmem:\s+(\d+) kB$", re.MULTILINE)
_MAX_BYTES = 8192


@dataclass(frozen=True, slots=True)
class MemoryCounters:
    """Resident bytes of one process."""

    anonymous_bytes: int
    """Its own: heap, stacks, and pages copied on write from files."""
    file_bytes: int
    """Mapped from files on disk: programs and libraries."""
    shared_bytes: int
    """Mapped from tmpfs: RAM images, or RAM of its own, and shared-memory devices."""


def memory_counters(pid: int) -> MemoryCounters:
    """The counters of now. Raises VmmExited, PermissionMissing."""
    try:
        fd = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.pread(fd, _MAX_BYTES, 0)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise VmmExited(f"pid {pid} is gone", pid=pid) from error
    except PermissionError as error:
        raise PermissionMissing(f"the memory of pid {pid} may not be looked at", pid=pid) from error
    found = _COUNTERS.search(text)
    if found is None:  # a zombie has no memory left
        raise VmmExited(f"pid {pid} has ended", pid=pid)
    return MemoryCounters(*(int(kibibytes) * 1024 for kibibytes in found.groups()))
