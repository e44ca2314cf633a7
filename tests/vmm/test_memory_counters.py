"""The kernel's counters of a process, seen on memory of our own and of a child."""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path

import pytest

from spec.errors import VmmExited
from spec.sizes import MIB
from vmm.memory_counters import memory_counters

BEHIND = 8 * MIB
"""What the kernel's counters may lag behind, and other threads of the test run may allocate."""


def test_pages_of_a_tmpfs_file_count_as_shared_until_written(tmpfs_dir: Path) -> None:
    path = tmpfs_dir / "ram"
    path.write_bytes(b"x" * 32 * MIB)
    before = memory_counters(os.getpid())
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 32 * MIB, mmap.MAP_PRIVATE) as memory:
        for at in range(0, 32 * MIB, mmap.PAGESIZE):
            _ = memory[at]
        read = memory_counters(os.getpid())
        for at in range(0, 16 * MIB, mmap.PAGESIZE):
            memory[at] = 1
        written = memory_counters(os.getpid())
    assert read.shared_bytes - before.shared_bytes == pytest.approx(32 * MIB, abs=BEHIND)
    assert written.shared_bytes - before.shared_bytes == pytest.approx(16 * MIB, abs=BEHIND)
    assert written.anonymous_bytes - read.anonymous_bytes == pytest.approx(16 * MIB, abs=BEHIND)
    assert written.file_bytes > 0


def test_who_has_ended_has_no_memory() -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "30"], {})
    try:
        memory_counters(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(VmmExited, match="has ended"):
            memory_counters(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with pytest.raises(VmmExited, match="is gone"):
        memory_counters(pid)
