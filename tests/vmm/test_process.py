"""Children: spawn, exit, signals, the ladder, and what must not be left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from spec.errors import FileMissing, MissingTool, VmmExited, VmmRefused, VmmTimeout
from vmm.inotify import modifications
from vmm.process import Exit, Rung, VmmProcess


def python(code: str, log: Path, **options: object) -> VmmProcess:
    return VmmProcess.spawn([sys.executable, "-c", code], stderr=log, **options)  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


async def test_the_exit_code_reaches_every_waiter(log: Path) -> None:
    process = python("raise SystemExit(7)", log)
    assert await asyncio.gather(*(process.wait() for _ in range(10))) == [Exit(7, None)] * 10
    assert process.exited == Exit(7, None)
    process.signal(signal.SIGTERM)  # to nobody


async def test_a_signal_is_told_apart_from_a_code(log: Path) -> None:
    process = python("import time; time.sleep(60)", log)
    process.signal(signal.SIGKILL)
    assert await process.wait() == Exit(None, signal.SIGKILL)
    assert str(process.exited) == "was killed by SIGKILL"


async def test_a_cancelled_waiter_does_not_take_the_exit_from_others(log: Path) -> None:
    process = python("import time; time.sleep(0.2)", log)
    first, second = asyncio.create_task(process.wait()), asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    first.cancel()
    assert await second == Exit(0, None)
    assert first.cancelled()


async def test_the_child_gets_a_session_two_appended_files_and_nothing_else(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_PASSWORD", "secret")
    out = log.with_name("out")
    out.write_text("earlier\n")
    passed, kept = os.open("/dev/zero", os.O_RDONLY), os.open("/dev/full", os.O_RDONLY)
    code = (
        "import os, sys; open_here = {os.readlink(f'/proc/self/fd/{fd}') for fd in range(64)"
        " if os.path.exists(f'/proc/self/fd/{fd}')}; print('/dev/zero' in open_here, '/dev/full' in open_here,"
        " os.getsid(0) == os.getpid(), 'REGISTRY_PASSWORD' in os.environ, sys.stdin.read() == '');"
        " print('oops', file=sys.stderr)"
    )
    process = python(code, log, stdout=out, pass_fds=(passed,))
    assert await process.wait() == Exit(0, None)
    os.close(passed)
    os.close(kept)
    assert out.read_text() == "earlier\nTrue False True False True\n"
    assert log.read_text() == "oops\n"


async def test_the_child_does_not_inherit_ignored_or_blocked_signals(log: Path) -> None:
    out = log.with_name("out")
    process = VmmProcess.spawn(["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"], stdout=out, stderr=log)
    await process.wait()
    blocked, ignored = (int(line.split()[1], 16) for line in out.read_text().splitlines())
    assert blocked == 0
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGINT - 1)  # Python itself ignores SIGPIPE


@pytest.mark.parametrize(
    ("argv", "log_name", "error"),
    [
        (["no-such-vmm"], "log", MissingTool),
        (["/etc/passwd"], "log", MissingTool),
        (["true"], "missing/log", FileMissing),
    ],
)
async def test_what_cannot_be_started_says_why(
    tmp_path: Path, argv: list[str], log_name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        VmmProcess.spawn(argv, stderr=tmp_path / log_name)


async def test_a_program_that_is_no_program(tmp_path: Path, log: Path) -> None:
    program = tmp_path / "vmm"
    program.write_bytes(b"\x00\x01")
    program.chmod(0o755)
    with pytest.raises(MissingTool, match="Exec format error"):
        VmmProcess.spawn([str(program)], stderr=log)


async def test_readiness_wins_the_race(log: Path) -> None:
    process = python("import time; time.sleep(60)", log)
    assert await process.until_ready(asyncio.sleep(0.01, "ready"), limit_s=5, what="socket") == "ready"
    await process.kill_ladder([])


async def test_exit_wins_the_race_and_quotes_only_its_own_log(log: Path) -> None:
    log.write_text("of an earlier generation\n")
    process = python("import sys; sys.exit('no kernel here')", log)
    with pytest.raises(VmmExited, match=r"exited with code 1 while waiting for the socket: no kernel here$") as caught:
        await process.until_ready(asyncio.sleep(60), limit_s=30, what="socket")
    assert caught.value.fields["exit_code"] == 1


async def test_time_wins_the_race(log: Path) -> None:
    process = python("import time; time.sleep(60)", log)
    with pytest.raises(VmmTimeout, match=r"no socket after 0\.05 s"):
        await process.until_ready(asyncio.sleep(60), limit_s=0.05, what="socket")
    await process.kill_ladder([])


async def test_a_connection_broken_by_the_exit_is_told_as_the_exit(log: Path) -> None:
    process = python("import time; time.sleep(0.1); raise SystemExit(3)", log)

    async def connection() -> None:
        await asyncio.sleep(0.05)
        raise ConnectionResetError

    with pytest.raises(VmmExited, match="exited with code 3"):
        await process.until_ready(connection(), limit_s=5, what="reply")


async def test_an_error_of_readiness_is_passed_on(log: Path) -> None:
    process = python("import time; time.sleep(60)", log)

    async def refused() -> None:
        raise VmmRefused("no")

    with pytest.raises(VmmRefused):
        await process.until_ready(refused(), limit_s=5, what="reply")
    await process.kill_ladder([])


STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)


async def started(code: str, log: Path) -> VmmProcess:
    out = log.with_name("out")
    process = python(code, log, stdout=out)
    async with aclosing(modifications(out)) as changes:
        async for _ in changes:
            if out.read_text():
                break
    return process


async def test_the_ladder_climbs_past_rungs_that_fail_hang_or_are_ignored(log: Path) -> None:
    process = await started(STUBBORN, log)
    climbed: list[str] = []

    async def refuse() -> None:
        climbed.append("refuse")
        raise VmmRefused("not now")

    async def hang() -> None:
        climbed.append("hang")
        await asyncio.sleep(60)

    begun = time.monotonic()
    ended = await process.kill_ladder(
        [Rung("refuse", refuse, 10), Rung("hang", hang, 0.1), process.signal_rung(signal.SIGTERM, 0.1)]
    )
    assert (climbed, ended) == (["refuse", "hang"], Exit(None, signal.SIGKILL))
    assert 0.2 <= time.monotonic() - begun < 5


async def test_the_ladder_stops_at_the_rung_that_worked(log: Path) -> None:
    process = python("import time; time.sleep(60)", log)
    ended = await process.kill_ladder([process.signal_rung(signal.SIGTERM, 5), process.signal_rung(signal.SIGHUP, 5)])
    assert ended == Exit(None, signal.SIGTERM)
    assert await process.kill_ladder([]) == ended  # again: the same answer


@pytest.mark.parametrize("kind", ["task", "scope"])
async def test_a_cancelled_ladder_leaves_no_process(log: Path, kind: str) -> None:
    process = await started(STUBBORN, log)
    rungs = [process.signal_rung(signal.SIGTERM, 60)]
    if kind == "task":
        task = asyncio.create_task(process.kill_ladder(rungs))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with anyio.move_on_after(0.05):
            await process.kill_ladder(rungs)
    assert process.exited == Exit(None, signal.SIGKILL)


async def test_a_stopped_process_dies_too(log: Path) -> None:
    process = await started(STUBBORN, log)
    process.signal(signal.SIGSTOP)
    assert await process.kill_ladder([process.signal_rung(signal.SIGTERM, 0.05)]) == Exit(None, signal.SIGKILL)


async def test_attach_to_a_process_that_is_not_our_child(log: Path) -> None:
    out = log.with_name("out")
    shell = VmmProcess.spawn(["sh", "-c", "sleep 60 & echo $!"], stdout=out, stderr=log)
    await shell.wait()
    orphan = VmmProcess.attach(int(out.read_text()))
    assert orphan.exited is None
    ended = await orphan.kill_ladder([orphan.signal_rung(signal.SIGTERM, 5)])
    assert ended == Exit(None, None)
    with pytest.raises(VmmExited):
        VmmProcess.attach(shell.pid)


async def test_a_watcher_that_cannot_be_had_leaves_no_child(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", exhausted)
    with pytest.raises(Exception, match="Too many open files"):
        python("import time; time.sleep(60)", log)
