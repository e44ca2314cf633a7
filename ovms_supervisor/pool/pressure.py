"""Whether the host still has memory for machines that nobody has asked for yet, and word of it when it gets scarce."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ovms_supervisor.config.host import meminfo
from spec.errors import CapacityExceeded
from spec.sizes import format_size

_PSI: Final = Path("/proc/pressure/memory")
_STALL: Final = b"some 100000 2000000\0"
"""Tell when tasks have waited for memory for 100 ms within 2 s (the kernel's documentation, accounting/psi.rst)."""


def shortage(reserve_bytes: int, tmpfs: Path) -> str | None:
    """Why no clone should be parked now, as a sentence; None if one may be (blocks for a moment)."""
    available = meminfo()["MemAvailable"]
    if available < reserve_bytes:
        return f"{format_size(available)} of memory are available, {format_size(reserve_bytes)} are kept in reserve"
    figures = os.statvfs(tmpfs)
    free = figures.f_bavail * figures.f_frsize
    if free < reserve_bytes // 4:
        return f"{format_size(free)} are free on {tmpfs}, {format_size(reserve_bytes // 4)} are kept in reserve"
    return None


def lacking_bytes(refused: CapacityExceeded) -> int:
    """How much more memory a start would need than there is, by the figures of its refusal."""
    figures = {name: value for name, value in refused.fields.items() if isinstance(value, int)}
    wanted = sum(figures.get(name, 0) for name in ("needed_bytes", "growth_bytes", "promised_bytes"))
    if "budget_bytes" in figures:
        return wanted + figures.get("private_bytes", 0) - figures["budget_bytes"]
    return wanted - figures.get("available_bytes", figures.get("free_bytes", 0))


def watch_memory() -> int:
    """A descriptor on which the kernel reports stalls by POLLPRI. Raises OSError on one without PSI."""
    fd = os.open(_PSI, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, _STALL)
    except BaseException:
        os.close(fd)
        raise
    return fd


class StallTrigger:
    """Calls back, in the event loop, when the kernel says that tasks wait for memory; silent on kernels without PSI.

    The kernel reports by POLLPRI, which event loops don't listen for: an epoll of its own makes it readable.
    """

    def __init__(self, callback: Callable[[], None], watch: Callable[[], int] = watch_memory) -> None:
        self._callback = callback
        self._fd = -1
        self._epoll: select.epoll | None = None
        with suppress(OSError):
            self._fd = watch()
            self._epoll = select.epoll()
            self._epoll.register(self._fd, select.EPOLLPRI)
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_stall)

    def close(self) -> None:
        """Listen no more."""
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _on_stall(self) -> None:
        if self._epoll is not None and self._epoll.poll(0):
            self._callback()
