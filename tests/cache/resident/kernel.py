"""The kernel's own figures, read without the code under test; and a decoder that waits to be let go."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from cache.ramsnap import decode


def locked_kib() -> int:
    """``VmLck`` of this process."""
    return _number(Path("/proc/self/status").read_text(), "VmLck:")


def mapping_kib(path: Path, counter: str) -> int:
    """The sum of a counter over this process's mappings of a file."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith(counter):
            total += int(line.split()[1])
    return total


def _number(text: str, name: str) -> int:
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


class Gate:
    """In the place of the decoder: counts its calls, and holds each one until it is opened or stopped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, opened: bool = False) -> None:
        self.calls = 0
        self.opened = threading.Event()
        if opened:
            self.opened.set()
        self._entered = threading.Event()
        monkeypatch.setattr("cache.ramsnap.chain.decode", self._decode)

    def _decode(self, *args: Any, stop: threading.Event, **options: Any) -> Any:
        self.calls += 1
        self._entered.set()
        while not self.opened.wait(0.005) and not stop.is_set():
            pass
        return decode(*args, stop=stop, **{**options, "threads": 1})

    async def entered(self) -> None:
        """Return when a load is held at the gate."""
        with anyio.fail_after(10):
            while not self._entered.is_set():  # noqa: ASYNC110 - a thread sets it
                await anyio.sleep(0.002)
        self._entered.clear()
