"""Processor time of a process: what a request costs, however busy the host is with other things."""

from __future__ import annotations

from pathlib import Path


def cpu_s(pid: int) -> float:
    """Seconds that a process has computed so far, in the kernel and outside it."""
    text = Path(f"/proc/{pid}/schedstat").read_text()  # of the main thread, in nanoseconds
    others = sum(
        int((task / "schedstat").read_text().split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir()
        if task.name != str(pid)
    )
    return (int(text.split()[0]) + others) / 1e9
