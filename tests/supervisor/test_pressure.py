"""When memory is short, by the kernel's figures and by its word."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
from pathlib import Path

import pytest

from ovms_supervisor.pool.pressure import StallTrigger, shortage, watch_memory


def test_what_is_kept_in_reserve(tmpfs_dir: Path) -> None:
    assert shortage(0, tmpfs_dir) is None
    assert "of memory are available" in (shortage(1 << 60, tmpfs_dir) or "")


@pytest.mark.usefixtures("uvloop_here")
@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_a_report_of_the_kernel_calls_back(event_loop: str) -> None:
    """Urgent data of TCP is reported like a stall, by POLLPRI; only that tests can bring about."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()

        async def scenario() -> None:
            told = asyncio.Event()
            trigger = StallTrigger(told.set, lambda: os.dup(receiver.fileno()))
            await asyncio.sleep(0.01)
            assert not told.is_set()
            sender.send(b"!", socket.MSG_OOB)
            async with asyncio.timeout(20):
                await told.wait()
            trigger.close()
            trigger.close()

        new_loop = importlib.import_module(event_loop).new_event_loop
        with receiver, asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(scenario())


async def test_a_kernel_that_reports_nothing_is_none_of_our_trouble() -> None:
    def watch() -> int:
        raise FileNotFoundError

    trigger = StallTrigger(lambda: None, watch)
    trigger.close()


async def test_the_real_one(tmp_path: Path) -> None:
    try:
        os.close(await asyncio.to_thread(watch_memory))
    except OSError as error:
        pytest.skip(f"no pressure stall information here: {error}")
    trigger = StallTrigger(lambda: None)
    trigger.close()
