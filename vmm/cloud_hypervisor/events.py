"""What ``--event-monitor`` writes: JSON objects one after another, pretty-printed, into a named pipe.

A pipe, since a guest can cause events as fast as it likes, and a file would grow with them. Cloud Hypervisor holds both
of its ends and never blocks on it (it drops what does not fit), so neither a slow daemon nor one that is gone
slows a guest; what a daemon has not read yet, up to the 64 KiB that a pipe holds, the next one finds.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

GuestEnding = Literal["shutdown", "panic", "reset"]

_PIPE_BYTES: Final = 64 * 1024
_PAUSE_S: Final = 0.05
"""Between reads: what a guest that floods the pipe may cost us."""
_LONGEST_BYTES: Final = 4096
"""Of an event: more than that without one is none."""


def make_pipe(path: Path) -> int:
    """Make the pipe, and open it for the VMM: for reading too, so that no write ever finds it without a reader.

    Raises OSError.
    """
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class EventReader:
    """Reads the pipe as events come, and tells once how the guest ended. Belongs to one event loop."""

    def __init__(self, path: Path, told: Callable[[GuestEnding], None]) -> None:
        self.ending: GuestEnding | None = None
        """The last word of the VMM on it. "shutdown" is also what one says that was told to quit."""
        self._told = told
        self._text = ""
        self._fd = _open(path)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._read)

    def finish(self) -> None:
        """Read what is left of a VMM that has gone, and close."""
        while self._fd >= 0 and self._take():
            pass
        self.close()

    def close(self) -> None:
        """Read no more; idempotent. What is in the pipe stays there for the next reader."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._take():
            self._pause = self._loop.call_later(_PAUSE_S, self._read_again)

    def _read_again(self) -> None:
        self._pause = None
        self._loop.add_reader(self._fd, self._read)

    def _take(self) -> bool:
        """Read once; False at the end."""
        try:
            data = os.read(self._fd, _PIPE_BYTES)
        except BlockingIOError:
            return True
        self._text += data.decode(errors="replace")
        for ending in guest_endings(self._text):
            first = self.ending is None
            if self.ending not in ("panic", "reset"):  # what follows those is our own doing
                self.ending = ending
            if first:
                self._told(ending)
        self._text = self._text[-_LONGEST_BYTES:] if data else ""
        return bool(data)


def guest_endings(text: str) -> Iterator[GuestEnding]:
    """What the events say about the guest's end, in their order."""
    for source, event, detail in parse_events(text):
        match source, event, detail:
            case "guest", "panic", "panic":
                yield "panic"
            case "vm", "rebooting", _:
                yield "reset"
            case "vm", "shutdown", _:
                yield "shutdown"


def parse_events(text: str) -> Iterator[tuple[str, str, str]]:
    """Source, event and its ``event`` property of each complete object; what else there is, is skipped."""
    decoder = json.JSONDecoder()
    position = text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            if isinstance(value.get("source"), str) and isinstance(value.get("event"), str):
                properties = value.get("properties")
                detail = properties.get("event") if isinstance(properties, dict) else None
                yield value["source"], value["event"], detail if isinstance(detail, str) else ""
        position = text.find("\n{", end - 1) + 1 or -1  # objects begin at the start of a line


def _open(path: Path) -> int:
    """The reading end; -1 if there is none, as of a VMM that a daemon before pipes has started."""
    try:
        if not stat.S_ISFIFO(path.lstat().st_mode):
            return -1
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1
