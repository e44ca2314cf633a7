"""Random prints, restarts and readers against a model: each reader sees every line once, in order, or is told."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ovms_supervisor.logs.console_file import RawLine
from ovms_supervisor.logs.console_log import ConsoleLog
from ovms_supervisor.logs.cursor import Cursor
from ovms_supervisor.logs.window import Window
from spec.api import LogEnd, LogGap
from tests.logs.conftest import Guest

_LIMIT_BYTES = 40 << 10

_steps = st.lists(
    st.one_of(
        st.tuples(st.just("print"), st.integers(1, 60), st.integers(0, 700)),
        st.tuples(st.just("fragment"), st.integers(1, 30), st.just(0)),
        st.tuples(st.just("index"), st.just(0), st.just(0)),
        st.tuples(st.just("read"), st.integers(0, 3), st.integers(1, 4)),
        st.tuples(st.just("join"), st.integers(0, 200), st.just(0)),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


class Reader:
    """Holds what a reader is given against what was printed."""

    def __init__(self, cursor: Cursor, start: int) -> None:
        self.cursor = cursor
        self.expected = start
        self.ended = False

    async def take(self, printed: list[bytes]) -> bool:
        batch = await self.cursor.next_batch()
        for item in batch:
            match item:
                case LogGap(seq=seq, lost=lost):
                    assert seq == self.expected
                    assert lost > 0
                    self.expected += lost
                case RawLine(seq=seq, data=data):
                    assert seq == self.expected
                    assert data == printed[seq - 1]
                    self.expected += 1
                case LogEnd():
                    self.ended = True
        return bool(batch)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_steps)
def test_every_reader_sees_each_line_once_or_is_told_of_the_gap(steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_play(Path(directory), steps))


async def _play(directory: Path, steps: list[tuple[str, int, int]]) -> None:
    def new() -> ConsoleLog:
        return ConsoleLog(directory / "console.log", directory / "console.index", limit_bytes=_LIMIT_BYTES)

    log = new()
    await log.open()
    guest = Guest(log.path)
    printed: list[bytes] = []
    unfinished = b""
    readers: list[Reader] = []
    for kind, a, b in steps:
        match kind:
            case "print":
                lines = [b"%d." % (len(printed) + i) + b"x" * b for i in range(a)]
                lines[0] = unfinished + lines[0]
                guest.prints(b"".join(line + b"\n" for line in lines)[len(unfinished) :])
                printed += lines
                unfinished = b""
            case "fragment":
                guest.prints(b"f" * a)
                unfinished += b"f" * a
            case "index":
                await log.catch_up()
            case "join":
                await log.catch_up()
                cursor = await log.cursor(Window(tail=a), follow=True).__aenter__()
                readers.append(Reader(cursor, max(1, log.file.next - a)))
            case "read" if a < len(readers) and readers[a].expected < log.file.next:
                for _ in range(b):
                    if readers[a].expected < log.file.next:
                        await readers[a].take(printed)
            case "restart":
                await log.close(None)
                for reader in readers:
                    while await reader.take(printed):
                        pass
                    assert reader.expected == log.file.next
                    await reader.cursor.__aexit__(None, None, None)
                readers.clear()
                log = new()
                await log.open()
    guest.ends()
    if unfinished:
        printed.append(unfinished)
    await log.close("stopped")
    for reader in [*readers, Reader(await log.cursor().__aenter__(), 1)]:
        while await reader.take(printed):
            pass
        assert reader.ended
        assert reader.expected == len(printed) + 1
        await reader.cursor.__aexit__(None, None, None)
    assert sum(path.stat().st_blocks * 512 for path in (log.path, log.index_path)) <= _LIMIT_BYTES + 4 * 4096
