"""File-system notifications in the event loop, one inotify descriptor for all watches of a kind.

Thousands of instances share the descriptor: a user may have only 128 inotify instances by default
(``fs.inotify.max_user_instances``), but watches by the hundred thousand.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from spec.errors import CapacityExceeded, FileMissing, OvmsError, PermissionMissing, VmmTimeout

_IN_MODIFY: Final = 0x002
_IN_ATTRIB: Final = 0x004
_IN_MOVED_TO: Final = 0x080
_IN_CREATE: Final = 0x100
_IN_DELETE_SELF: Final = 0x400
_IN_MOVE_SELF: Final = 0x800
_IN_Q_OVERFLOW: Final = 0x4000
_IN_IGNORED: Final = 0x8000

_FOR_DIRECTORY: Final = _IN_CREATE | _IN_MOVED_TO | _IN_DELETE_SELF
_FOR_FILE: Final = _IN_MODIFY | _IN_ATTRIB | _IN_DELETE_SELF | _IN_MOVE_SELF

_HEADER: Final = struct.Struct("iIII")  # wd, mask, cookie, length of the name; inotify(7)
_READ_BYTES: Final = 64 * 1024

_MODIFY_PAUSE_S: Final = 0.001
"""A guest may write its console byte by byte: each write is an event, and none may cost a turn of the loop."""

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """One inotify descriptor, open while anything is watched; wakes an :class:`asyncio.Event` per watch.

    With ``pause_s`` it reads at most once in that time: what happens meanwhile stays in the kernel's queue, which
    merges equal events. An overflow of that queue wakes every watch, so a wake says "look", never what is new.
    """

    def __init__(self, *, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self._fd = -1
        self._events: dict[int, list[asyncio.Event]] = {}
        self._resume: asyncio.TimerHandle | None = None

    @contextmanager
    def watching(self, path: Path, mask: int) -> Iterator[asyncio.Event]:
        """The event is set at each change until the context ends. Raises FileMissing, CapacityExceeded, …"""
        event = asyncio.Event()
        wd = self._add(path, mask)  # the same number again for an inode that is watched already
        self._events.setdefault(wd, []).append(event)
        try:
            yield event
        finally:
            self._remove(wd, event)

    def _add(self, path: Path, mask: int) -> int:
        if self._fd < 0:
            self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")
            asyncio.get_running_loop().add_reader(self._fd, self._read)
        try:
            return _checked(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask), str(path))
        except OvmsError:
            self._close_if_idle()
            raise

    def _remove(self, wd: int, event: asyncio.Event) -> None:
        watchers = self._events.get(wd, [])  # gone when the file was deleted
        if event in watchers:
            watchers.remove(event)
            if not watchers:
                del self._events[wd]
                _libc.inotify_rm_watch(self._fd, wd)
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._events or self._fd < 0:
            return
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        else:
            asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        for wd, mask in parse_events(data):
            woken = [wd] if not mask & _IN_Q_OVERFLOW else list(self._events)
            for number in woken:
                for event in self._events.get(number, ()):
                    event.set()
            if mask & _IN_IGNORED:  # the inode is gone, and the kernel may give its number to another watch
                self._events.pop(wd, None)
        if self._pause_s and self._events:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._fd)
            self._resume = loop.call_later(self._pause_s, self._read_again)
        self._close_if_idle()

    def _read_again(self) -> None:
        self._resume = None
        asyncio.get_running_loop().add_reader(self._fd, self._read)


def parse_events(data: bytes) -> Iterator[tuple[int, int]]:
    """The (watch, mask) of each record that one read of an inotify descriptor gave."""
    offset = 0
    while offset < len(data):
        wd, mask, _cookie, name_bytes = _HEADER.unpack_from(data, offset)
        yield wd, mask
        offset += _HEADER.size + name_bytes


async def wait_for_path(path: Path, *, limit_s: float) -> None:
    """Return as soon as ``path`` exists. Its directory must exist. Raises VmmTimeout, FileMissing, CapacityExceeded."""
    with _of_this_loop(_appearances, 0.0).watching(path.parent, _FOR_DIRECTORY) as changed:
        try:
            async with asyncio.timeout(limit_s):
                while not path.exists():  # looked at after the watch is there: nothing can slip through
                    await changed.wait()
                    changed.clear()
                    if not path.parent.exists():
                        raise FileMissing(f"{path.parent} was removed while waiting for {path.name}")
        except TimeoutError as error:
            raise VmmTimeout(f"{path} did not appear within {limit_s:g} s", path=str(path)) from error


async def modifications(path: Path) -> AsyncGenerator[None, None]:
    """Yields at once and then after every change of the file, many changes as one, until the file is unlinked.

    Look at the file's size after each: it may have changed once more or not at all. The last yield comes after the
    unlink. Close the iterator (``contextlib.aclosing``) to drop the watch. Raises FileMissing, CapacityExceeded.
    """
    with _of_this_loop(_modifications, _MODIFY_PAUSE_S).watching(path, _FOR_FILE) as changed:
        while True:
            exists = path.exists()
            yield
            if not exists:
                return
            await changed.wait()
            changed.clear()


async def arrivals(directory: Path) -> AsyncGenerator[None, None]:
    """Yields after files have been renamed into a directory, many at once as one; for as long as it is there.

    That is how files are replaced: look whether it was the one you care for. Close the iterator
    (``contextlib.aclosing``) to drop the watch. Raises FileMissing, CapacityExceeded.
    """
    with _of_this_loop(_appearances, 0.0).watching(directory, _IN_MOVED_TO | _IN_DELETE_SELF) as changed:
        while directory.exists():
            await changed.wait()
            changed.clear()
            yield


_PerLoop = WeakKeyDictionary[asyncio.AbstractEventLoop, Inotify]
_appearances: _PerLoop = WeakKeyDictionary()
_modifications: _PerLoop = WeakKeyDictionary()


def _of_this_loop(instances: _PerLoop, pause_s: float) -> Inotify:
    return instances.setdefault(asyncio.get_running_loop(), Inotify(pause_s=pause_s))


def _checked(result: int, what: str) -> int:
    """The result of a system call, or its errno as an error of ours."""
    if result >= 0:
        return result
    number = ctypes.get_errno()
    detail = f"cannot watch {what}: {os.strerror(number)}"
    match number:
        case errno.ENOENT | errno.ENOTDIR:
            raise FileMissing(detail)
        case errno.EACCES:
            raise PermissionMissing(detail)
        case _:
            raise CapacityExceeded(detail, remedy="Raise fs.inotify.max_user_watches and max_user_instances.")
