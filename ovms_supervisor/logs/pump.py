"""Follows all console logs of an event loop: few threads however many guests print, and none when nobody does."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

import structlog

from ovms_supervisor.logs import threads
from ovms_supervisor.logs.console_file import ConsoleFile, Pass
from ovms_supervisor.logs.modified import ModifiedFiles

GATHER_S = 0.0005
"""Between two visits of the thread, so that what many guests print goes in few of them. The first write after a pause
is looked at without waiting; asyncio rounds this up to a millisecond, uvloop to the next turn of the loop."""

_RETRY_S = 1.0
_FILES_PER_HOP = 32  # bounds what one visit of the thread does: 32 passes of PASS_BYTES

_log = structlog.get_logger(__name__)


class Followed(Protocol):
    """What the pump needs of a console log."""

    path: Path
    file: ConsoleFile

    def on_written(self) -> None:
        """The file was written to (called by inotify)."""

    def on_pass(self, done: Pass) -> None:
        """A pass indexed new lines."""

    def on_trouble(self, error: OSError) -> None:
        """A pass failed; it is tried again."""


class Pump:
    """Collects the logs that were written to and gives them to one worker thread, many at a time."""

    def __init__(self) -> None:
        self.lines = 0
        self.size_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._followed: set[Followed] = set()
        self._dirty: dict[Followed, None] = {}
        self._modified: ModifiedFiles | None = None
        self._task: asyncio.Task[None] | None = None
        self._visited = float("-inf")

    @classmethod
    def current(cls) -> Pump:
        """The pump of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in _pumps:
            _pumps[loop] = cls()
        return _pumps[loop]

    def add(self, log: Followed) -> None:
        """Follow a log from now on. Raises OSError."""
        if self._modified is None:
            self._modified = ModifiedFiles()
        self._followed.add(log)
        self._arm(log)
        if log.file.is_behind():  # of a new machine's, nothing is worth a visit of the thread
            self.mark(log)

    def remove(self, log: Followed) -> None:
        """Stop following; the last one out closes inotify. A pass in the thread may still be under way."""
        self._followed.discard(log)
        self._dirty.pop(log, None)
        if self._modified:
            self._modified.disarm(log.on_written)
            if not self._followed:
                self._modified.close()
                self._modified = None

    def mark(self, log: Followed) -> None:
        """The log has something new."""
        if log not in self._followed:
            return
        self._dirty[log] = None
        if self._task is None:
            # Lives only as long as something is dirty, so that an idle daemon has neither a task nor a timer.
            self._task = self._loop.create_task(self._drain(), name="console-logs")

    def count(self, done: Pass) -> None:
        """Add a pass to the totals since the daemon started."""
        self.lines += done.lines
        self.size_bytes += done.size_bytes

    async def _drain(self) -> None:
        try:
            while self._dirty:
                early_s = self._visited + GATHER_S - self._loop.time()
                if early_s > 0:
                    await asyncio.sleep(early_s)
                batch = list(self._dirty)[:_FILES_PER_HOP]
                for log in batch:
                    del self._dirty[log]
                    self._arm(log)
                self._visited = self._loop.time()
                rest = [log for log in batch if not self._at_once(log)]
                if rest:
                    results = await threads.run(_advance, [log.file for log in rest])
                    self._visited = self._loop.time()
                    for log, result in zip(rest, results, strict=True):
                        self._settle(log, result)
        finally:
            self._task = None

    def _at_once(self, log: Followed) -> bool:
        """Index the little that a guest has printed into a file in memory: a visit of the thread takes longer."""
        try:
            done = log.file.advance_at_once()
        except OSError as error:
            self._settle(log, error)
            return True
        if done is not None:
            self._settle(log, done)
        return done is not None

    def _arm(self, log: Followed) -> None:
        """Ask for the next event before reading, so that no write falls between the two."""
        if self._modified is None:
            return
        try:
            self._modified.arm(log.file.same_file or log.path, log.on_written)
        except OSError as error:
            if error.errno != errno.ENOENT:  # a removed directory has nothing more to say
                self._settle(log, error)

    def _settle(self, log: Followed, result: Pass | OSError) -> None:
        if log not in self._followed:
            return
        if isinstance(result, OSError):
            _log.warning("console log cannot be indexed", path=str(log.path), error=str(result))
            log.on_trouble(result)
            self._loop.call_later(_RETRY_S, self.mark, log)
            return
        self.count(result)
        if result.lines:
            log.on_pass(result)
        if result.more:
            self._dirty[log] = None


_pumps: WeakKeyDictionary[asyncio.AbstractEventLoop, Pump] = WeakKeyDictionary()


def _advance(files: list[ConsoleFile]) -> list[Pass | OSError]:
    results: list[Pass | OSError] = []
    for file in files:
        try:
            results.append(file.advance())
        except OSError as error:
            results.append(error)
    return results
