"""Which of many files were written to: one inotify instance, each watch good for one event.

One-shot watches are the point: a serial port that writes byte by byte wakes the daemon once, and not again before the
follower has read what is there and asked for the next event.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

_IN_MODIFY = 0x00000002
_IN_ATTRIB = 0x00000004
_IN_ONESHOT = 0x80000000
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name (none for a watched file)

_libc = ctypes.CDLL(None, use_errno=True)


class ModifiedFiles:
    """Calls back, in the event loop, once after a file that was armed is written to, or loses its name."""

    def __init__(self) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise _last_error()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._watches: dict[Callable[[], None], int] = {}
        """The other way round: with thousands of files nobody looks through all of them to take one back."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_readable)

    def arm(self, path: Path, callback: Callable[[], None]) -> None:
        """Ask for the next write to a file; asking again before it happened changes nothing. Raises OSError."""
        mask = ctypes.c_uint32(_IN_MODIFY | _IN_ATTRIB | _IN_ONESHOT)
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if watch < 0:
            raise _last_error(path)
        self._callbacks[watch], self._watches[callback] = callback, watch

    def disarm(self, callback: Callable[[], None]) -> None:
        """Take back what was asked for with this callback."""
        watch = self._watches.pop(callback, None)
        if watch is not None and self._callbacks.pop(watch, None) is not None:
            _libc.inotify_rm_watch(self._fd, watch)

    def close(self) -> None:
        """Forget all watches."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._callbacks.clear()
            self._watches.clear()

    def _on_readable(self) -> None:
        data = os.read(self._fd, 64 << 10)
        for watch, mask, _, _ in _EVENT.iter_unpack(data):
            if mask & (_IN_MODIFY | _IN_ATTRIB) and (callback := self._callbacks.pop(watch, None)):
                self._watches.pop(callback, None)
                callback()


def _last_error(path: Path | None = None) -> OSError:
    errno = ctypes.get_errno()
    return OSError(errno, os.strerror(errno), str(path) if path else None)
