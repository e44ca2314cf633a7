"""The console of one instance: followed while it runs, readable for as long as its files are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from ovms_supervisor.logs import threads
from ovms_supervisor.logs.console_file import ConsoleFile, Pass, RawLine
from ovms_supervisor.logs.cursor import Cursor
from ovms_supervisor.logs.pump import Pump
from ovms_supervisor.logs.window import Window, format_time
from spec.api import LogEnd, LogGap, LogLine
from spec.instance import Degradation

DEFAULT_LIMIT_BYTES = 16 << 20
_RECENT_LINES = 1024


class ConsoleLog:
    """``console.log``, which the VMM appends to, and ``console.index``, which we write.

    ``open`` makes both files, so it comes before the VMM; after a restart of the daemon it goes on where the index
    ends, and the lines of the meantime get the time of the restart. ``limit_bytes`` bounds what both files take on
    disk; while no daemon runs nothing does.
    """

    def __init__(self, path: Path, index_path: Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.path = path
        self.index_path = index_path
        self.file = ConsoleFile(path, index_path, limit_bytes=limit_bytes)
        self.recent: list[RawLine] = []
        self.readers = 0
        self.closed = False
        self.ended: str | None = None
        self._trouble: OSError | None = None
        self._changed = asyncio.Event()

    @property
    def degraded(self) -> Degradation | None:
        """Why the log is not what it should be, if so: not bounded, or not readable beyond what is indexed."""
        if self._trouble is not None:
            return Degradation(code="logs.not_indexed", detail=f"new console lines cannot be read: {self._trouble}")
        if self.file.removed:
            return Degradation(
                code="logs.removed",
                detail=f"{self.path} was removed: its lines cannot be read any more, "
                "and a restarted daemon may not be able to take the machine over",
            )
        if not self.file.can_punch:
            return Degradation(
                code="logs.unbounded",
                detail=f"the file system of {self.path.parent} cannot punch holes, so the console log is not bounded",
            )
        return None

    async def open(self) -> None:
        """Make or open the files and follow them. Raises OSError."""
        async with self.opening() as open_files:
            await threads.run(open_files)

    @asynccontextmanager
    async def opening(self) -> AsyncIterator[Callable[[], None]]:
        """What opens the files, to be called in a thread within the context; after it they are followed."""
        yield self.file.open
        try:
            Pump.current().add(self)
        except OSError:
            self.file.close()
            raise

    async def close(self, ended: str | None) -> None:
        """Stop following; idempotent.

        ``ended`` is the final state of an instance whose VMM is gone: all that it wrote is indexed first, then
        readers get LogEnd. None: the daemon goes, the instance stays; readers just end.
        """
        if self.closed:
            return
        try:
            await self._catch_up(at_end=ended is not None)
        except OSError as error:
            self._trouble = error
        finally:
            Pump.current().remove(self)
            self.ended, self.closed = ended, True
            self._notify()
            await threads.run(self.file.close)

    def cursor(self, window: Window = Window(), *, follow: bool = False) -> Cursor:  # noqa: B008 (immutable)
        """A reader of its own; enter it as an async context manager."""
        return Cursor(self, window, follow=follow)

    async def read(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> AsyncGenerator[LogLine | LogGap | LogEnd, None]:
        """The lines as the API gives them. Close the iterator (``contextlib.aclosing``) if it isn't exhausted."""
        async with self.cursor(Window(tail, since_ns, until_ns), follow=follow) as cursor:
            while batch := await cursor.next_batch():
                for item in batch:
                    yield log_line(item) if isinstance(item, RawLine) else item

    async def last_lines(self, count: int) -> list[str]:
        """The last lines as text, bytes that are not UTF-8 replaced."""
        async with self.cursor(Window(tail=count)) as cursor:
            lines: list[str] = []
            while batch := await cursor.next_batch():
                lines += [item.data.decode(errors="replace") for item in batch if isinstance(item, RawLine)]
            return lines

    async def catch_up(self) -> None:
        """Index what the VMM has written up to now, without waiting for the pump."""
        if not self.closed:
            await self._catch_up(at_end=False)

    async def changed(self) -> None:
        """Return after the next pass, or when the log is closed."""
        await self._changed.wait()

    def on_written(self) -> None:
        """The file was written to (called by inotify)."""
        Pump.current().mark(self)

    def on_pass(self, done: Pass) -> None:
        """A pass indexed new lines."""
        self._trouble = None
        self._remember(done)
        self._notify()

    def on_trouble(self, error: OSError) -> None:
        """A pass failed; the pump tries again."""
        self._trouble = error

    def _remember(self, done: Pass) -> None:
        """Keep the latest lines in memory while somebody reads: who is a few passes late needs no thread for them."""
        new, before = done.recent, self.recent
        if not self.readers or not new or not before or before[-1].seq + 1 != new[0].seq:
            self.recent = new
        elif len(before) < _RECENT_LINES:
            before += new
        else:
            self.recent = before[-_RECENT_LINES // 2 :] + new

    def _notify(self) -> None:
        # Everybody who waits wakes up; who waits from now on waits for the next one.
        self._changed.set()
        self._changed = asyncio.Event()

    async def _catch_up(self, *, at_end: bool) -> None:
        future = threads.submit(self.file.catch_up, at_end=at_end)
        # A callback, as other readers must be woken also if this caller is cancelled.
        future.add_done_callback(self._on_caught_up)
        await asyncio.shield(future)

    def _on_caught_up(self, future: asyncio.Future[list[Pass]]) -> None:
        if future.cancelled() or future.exception():
            return
        for done in future.result():
            Pump.current().count(done)
            if done.lines:
                self.on_pass(done)


def log_line(line: RawLine) -> LogLine:
    """A line as the API gives it."""
    ts = format_time(line.ts_ns)
    try:
        return LogLine(seq=line.seq, ts=ts, line=line.data.decode(), partial=line.partial)
    except UnicodeDecodeError:
        return LogLine(
            seq=line.seq, ts=ts, line=line.data.decode(errors="replace"), partial=line.partial, data=line.data
        )
