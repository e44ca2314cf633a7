"""The console log against a real file that a writer appends to, through inotify and holes."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from ovms_supervisor.logs import console_file
from ovms_supervisor.logs.console_log import ConsoleLog
from ovms_supervisor.logs.line_index import RECORD
from ovms_supervisor.logs.pump import Pump
from ovms_supervisor.logs.splitter import MAX_LINE_BYTES
from ovms_supervisor.logs.window import Window
from spec.api import LogEnd, LogGap, LogLine
from spec.errors import FileMissing
from tests.logs.conftest import Guest

Item = LogLine | LogGap | LogEnd


async def collect(log: ConsoleLog, **query: int | bool | None) -> list[Item]:
    return [item async for item in log.read(**query)]  # type: ignore[arg-type]


def texts(items: list[Item]) -> list[str]:
    return [item.line for item in items if isinstance(item, LogLine)]


async def test_lines_are_numbered_stamped_and_complete(log: ConsoleLog, guest: Guest) -> None:
    before = time.time()
    guest.prints(b"one\r\ntwo\n\nlast without its end")
    items = await collect(log)
    assert texts(items) == ["one", "two", ""]
    assert [item.seq for item in items if isinstance(item, LogLine)] == [1, 2, 3]
    assert all(
        item.ts.startswith(time.strftime("%Y-%m-%dT", time.gmtime(before)))
        for item in items[:1]
        if isinstance(item, LogLine)
    )
    await log.close("stopped")
    items = await collect(log)
    assert texts(items)[3:] == ["last without its end"]
    assert items[-1] == LogEnd(end="stopped")


async def test_following_is_replay_that_waits_and_ends_with_the_instance(log: ConsoleLog, guest: Guest) -> None:
    guest.prints(b"before\n")
    seen: list[Item] = []

    async def follow() -> None:
        async for item in log.read(follow=True):
            seen.append(item)  # noqa: PERF401 (seen as far as it got)

    task = asyncio.create_task(follow())
    for i in range(50):
        guest.prints(b"live %d" % i)
        await asyncio.sleep(0.001)
        guest.prints(b"\n")
    guest.prints(b"dying words")
    await log.close("failed")
    await asyncio.wait_for(task, 10)
    assert texts(seen) == ["before", *(f"live {i}" for i in range(50)), "dying words"]
    assert seen[-1] == LogEnd(end="failed")


async def test_a_live_line_arrives_soon(log: ConsoleLog, guest: Guest) -> None:
    async with log.cursor(follow=True) as cursor:
        delays = []
        for _ in range(20):
            await asyncio.sleep(0.02)
            written = time.perf_counter()
            guest.prints(b"tick\n")
            await cursor.next_batch()
            delays.append(time.perf_counter() - written)
    assert sorted(delays)[10] < 0.05


async def test_an_idle_log_has_no_task_and_no_timer(log: ConsoleLog, guest: Guest) -> None:
    guest.prints(b"x\n")
    await asyncio.sleep(0.1)
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "console-logs"] == []


async def test_the_daemon_going_away_ends_readers_without_saying_the_instance_ended(
    log: ConsoleLog, guest: Guest
) -> None:
    guest.prints(b"one\n")
    task = asyncio.create_task(collect(log, follow=True))
    await asyncio.sleep(0.05)
    await log.close(None)
    assert [type(item) for item in await task] == [LogLine]


async def test_tail_since_and_until(log: ConsoleLog, guest: Guest) -> None:
    for word in (b"a", b"b", b"c"):
        guest.prints(word + b"\n")
        await log.catch_up()
        await asyncio.sleep(0.002)
    async with log.cursor() as cursor:
        stamps = [item.ts_ns for item in await cursor.next_batch() if isinstance(item, console_file.RawLine)]
    assert texts(await collect(log, tail=2)) == ["b", "c"]
    assert texts(await collect(log, tail=0)) == []
    assert texts(await collect(log, since_ns=stamps[1])) == ["b", "c"]
    assert texts(await collect(log, since_ns=stamps[1] + 1)) == ["c"]
    assert texts(await collect(log, until_ns=stamps[1])) == ["a", "b"]
    assert texts(await collect(log, since_ns=stamps[0], until_ns=stamps[1], tail=2)) == ["b"]
    assert texts(await collect(log, since_ns=stamps[2] + 1)) == []


async def test_a_clock_that_is_set_back_does_not_set_stamps_back(
    log: ConsoleLog, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([5_000, 3_000, 7_000])
    monkeypatch.setattr("ovms_supervisor.logs.console_file.time.time_ns", lambda: next(clock))
    for word in (b"a", b"b", b"c"):
        guest.prints(word + b"\n")
        await log.catch_up()
    assert texts(await collect(log, since_ns=5_000)) == ["a", "b", "c"]
    assert texts(await collect(log, since_ns=5_001)) == ["c"]


async def test_following_ends_at_until(log: ConsoleLog, guest: Guest) -> None:
    guest.prints(b"in time\n")
    items = await collect(log, follow=True, until_ns=time.time_ns() + 200_000_000)
    assert texts(items) == ["in time"]


async def test_bytes_are_bytes(log: ConsoleLog, guest: Guest) -> None:
    guest.prints("grüße\n".encode() + b"\xff\x00\xfe\n")
    first, second = await collect(log)
    assert isinstance(first, LogLine)
    assert isinstance(second, LogLine)
    assert (first.line, first.data) == ("grüße", None)
    assert (second.line, second.data) == ("\ufffd\x00\ufffd", b"\xff\x00\xfe")


async def test_an_overlong_line_comes_in_marked_parts(log: ConsoleLog, guest: Guest) -> None:
    guest.prints(b"x" * (2 * MAX_LINE_BYTES + 5) + b"\n")
    items = [item for item in await collect(log) if isinstance(item, LogLine)]
    assert [len(item.line) for item in items] == [MAX_LINE_BYTES, MAX_LINE_BYTES, 5]
    assert [item.partial for item in items] == [True, True, False]


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("line", [b"a line of quite usual length, with a number\n", b"\n"])
async def test_disk_use_is_bounded_and_what_was_dropped_is_told(log: ConsoleLog, guest: Guest, line: bytes) -> None:
    total = (2 << 20) // (len(line) + RECORD.size)
    for _ in range(64):
        guest.prints(line * (total // 64))
        await log.catch_up()
    printed = total // 64 * 64
    assert allocated(log.path) + allocated(log.index_path) <= (256 << 10) + 4 * 4096
    assert log.path.stat().st_size == printed * len(line)
    items = await collect(log)
    gap, lines = items[0], items[1:]
    assert isinstance(gap, LogGap)
    assert gap.seq == 1
    assert gap.lost + len(lines) == printed
    assert [item.seq for item in lines if isinstance(item, LogLine)] == list(range(gap.lost + 1, printed + 1))
    assert {text.encode() + b"\n" for text in texts(items)} == {line}
    assert len(texts(await collect(log, tail=3))) == 3


async def test_a_reader_that_falls_behind_is_told_and_goes_on(log: ConsoleLog, guest: Guest) -> None:
    guest.prints(b"first\n")
    async with log.cursor(follow=True) as cursor:
        assert len(await cursor.next_batch()) == 1
        guest.prints(b"".join(b"flood %06d\n" % i for i in range(40_000)))
        await log.catch_up()
        [gap] = await cursor.next_batch()
        assert isinstance(gap, LogGap)
        assert gap.seq == 2
        assert "slow" in gap.reason
        [line, *_] = await cursor.next_batch()
        assert line.seq == 2 + gap.lost  # type: ignore[union-attr]
        assert line.data == b"flood %06d" % gap.lost  # type: ignore[union-attr]


async def test_a_restarted_daemon_goes_on_where_the_index_ends(tmp_path: Path, guest: Guest) -> None:
    paths = tmp_path / "console.log", tmp_path / "console.index"
    first = ConsoleLog(*paths, limit_bytes=64 << 10)
    await first.open()
    guest.prints(b"".join(b"line %05d\n" % i for i in range(1, 5001)) + b"half ")
    await first.catch_up()
    await first.close(None)
    dropped = first.file.first
    assert dropped > 1
    guest.prints(b"a line\nmeanwhile\n")
    with paths[1].open("ab") as index:
        index.write(b"torn record")
    second = ConsoleLog(*paths, limit_bytes=64 << 10)
    await second.open()
    assert second.file.first == dropped
    items = await collect(second)
    assert texts(items)[-3:] == ["line 05000", "half a line", "meanwhile"]
    assert [item.seq for item in items if isinstance(item, LogLine)] == list(range(dropped, 5003))
    await second.close("stopped")


async def test_a_log_can_be_read_after_its_end_and_not_after_its_removal(log: ConsoleLog, guest: Guest) -> None:
    guest.prints(b"x\n")
    await log.close("stopped")
    assert await log.last_lines(5) == ["x"]
    log.path.unlink()
    with pytest.raises(FileMissing):
        await log.last_lines(5)


async def test_a_truncated_file_is_a_gap_and_not_the_end(log: ConsoleLog, guest: Guest) -> None:
    guest.prints(b"old\nolder\n")
    await log.catch_up()
    os.truncate(log.path, 0)
    guest.prints(b"new\n")
    items = await collect(log)
    assert items[0] == LogGap(seq=1, lost=2, reason=items[0].reason)  # type: ignore[union-attr]
    assert texts(items) == ["new"]


async def test_where_holes_are_not_to_be_had_the_log_says_so(
    log: ConsoleLog, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no holes here")

    monkeypatch.setattr(console_file, "punch_head", refuse)
    monkeypatch.setattr("ovms_supervisor.logs.line_index.punch_head", refuse)
    guest.prints(b"0123456789\n" * 40_000)
    assert len(texts(await collect(log))) == 40_000
    assert [entry.code for entry in (log.degraded,) if entry] == ["logs.unbounded"]


async def test_a_full_disk_loses_nothing_that_the_vmm_wrote(
    log: ConsoleLog, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovms_supervisor.logs.pump._RETRY_S", 0.05)
    real = os.pwrite
    full = True

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    guest.prints(b"kept\n")
    async with asyncio.timeout(5):
        while log.degraded is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert log.degraded.code == "logs.not_indexed"
    full = False
    assert texts(await collect(log)) == ["kept"]
    assert log.degraded is None


async def test_cancelled_readers_leave_no_descriptor(log: ConsoleLog, guest: Guest) -> None:
    guest.prints(b"x\n" * 1000)
    await log.catch_up()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for delay in (0, 0, 0.0001, 0.0003, 0.001, 0.003) * 5:
        async with aclosing(log.read(follow=True)) as lines:
            task = asyncio.ensure_future(anext(lines))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_many_readers_of_one_log_see_the_same(log: ConsoleLog, guest: Guest) -> None:
    tasks = [asyncio.create_task(collect(log, follow=True)) for _ in range(20)]
    for i in range(2000):
        guest.prints(b"%d\n" % i)
        if i % 100 == 0:
            await asyncio.sleep(0.003)
    await log.close("stopped")
    for items in await asyncio.gather(*tasks):
        assert texts(items) == [str(i) for i in range(2000)]


async def test_totals_count_lines_and_bytes(log: ConsoleLog, guest: Guest) -> None:
    guest.prints(b"12345\n123\n")
    await log.catch_up()
    assert (Pump.current().lines, Pump.current().size_bytes) == (2, 10)


async def test_window_is_the_default(log: ConsoleLog) -> None:
    async with log.cursor(Window()) as cursor:
        assert await cursor.next_batch() == []


async def test_what_was_printed_faster_than_it_is_read_is_dropped_unread(tmp_path: Path, guest: Guest) -> None:
    """As after days without a daemon, or of a guest that floods its console: the disk use is bounded at once."""
    log = ConsoleLog(tmp_path / "console.log", tmp_path / "console.index", limit_bytes=256 << 10)
    guest.prints(b"first\n")
    await log.open()
    assert texts(await collect(log)) == ["first"]
    await log.close(None)
    guest.prints(b"".join(b"%08d of very many\n" % number for number in range(100_000)))
    log = ConsoleLog(tmp_path / "console.log", tmp_path / "console.index", limit_bytes=256 << 10)
    await log.open()
    items = await collect(log)
    assert allocated(log.path) + allocated(log.index_path) <= (256 << 10) + 4 * 4096
    gap, lines = items[0], texts(items)
    assert isinstance(gap, LogGap)
    assert gap.seq == 1
    assert gap.lost >= 2
    assert [int(line[:8]) for line in lines] == list(range(100_000 - len(lines), 100_000))
    assert len(lines) > 1000
    await log.close(None)
    log = ConsoleLog(tmp_path / "console.log", tmp_path / "console.index", limit_bytes=256 << 10)
    await log.open()
    guest.prints(b"last\n")
    assert texts(await collect(log)) == [*lines, "last"]
    await log.close("stopped")


async def test_a_log_that_is_removed_stays_bounded_and_says_so(log: ConsoleLog, guest: Guest) -> None:
    guest.prints(b"before\n")
    await log.catch_up()
    log.path.unlink()
    log.index_path.unlink()
    async with asyncio.timeout(10):
        while log.degraded is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert log.degraded.code == "logs.removed"
    printed = 0
    async with asyncio.timeout(20):
        for _ in range(8):
            guest.prints(b"0123456789abcde\n" * 8192)
            printed += 8192
            while log.file.next <= printed + 1:  # noqa: ASYNC110 - the pump follows a file without a name, too
                await asyncio.sleep(0.01)
    assert os.fstat(guest.descriptor).st_blocks * 512 <= (256 << 10) + 4 * 4096
