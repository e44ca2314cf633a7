"""The systemd units, read by systemd itself where it is installed, and the sign of life that they demand."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovms_supervisor.service_units import service_unit, socket_unit
from ovms_supervisor.watchdog import Watchdog, watchdog_limit_s


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("group", [None, "root"])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, user: bool, group: str | None) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze to read units with")
    command = [shutil.which("true") or "/bin/true", "--root=/a b", "--run-dir=/c%d", "serve"]
    (tmp_path / "ovms.service").write_text(service_unit(command, user=user))
    (tmp_path / "ovms.socket").write_text(socket_unit(Path("/run/ovms/ovms.sock"), group, user=user))
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            tmp_path / "ovms.service",
            tmp_path / "ovms.socket",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith("ovms.")]
    assert ours == [], done.stderr


def test_words_of_the_command_reach_the_daemon_as_they_are() -> None:
    unit = service_unit(["/opt/ovm", "--root=/a b", '--config=/c"$d%'], user=False)
    assert 'ExecStart=/opt/ovm "--root=/a b" "--config=/c\\"$$d%%"\n' in unit


def test_machines_outlive_the_service() -> None:
    unit = service_unit(["/opt/ovm", "serve"], user=False)
    for line in ("KillMode=process", "OOMPolicy=continue", "Type=notify", "Delegate=yes", "LimitMEMLOCK=infinity"):
        assert f"\n{line}\n" in unit
    # A mount namespace of the service's own would hide the mounts of one daemon from the next.
    assert not any(f"\n{option}" in unit for option in ("Protect", "Private", "ReadOnly", "InaccessiblePaths"))


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "n"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        yield listening


async def test_the_loop_gives_signs_of_life_until_the_end(manager: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    async with Watchdog({"WATCHDOG_USEC": "30000", "WATCHDOG_PID": str(os.getpid())}):
        async with asyncio.timeout(20):
            signs = [await loop.sock_recv(manager, 100) for _ in range(3)]
    assert signs == [b"WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    "environ",
    [{}, {"WATCHDOG_USEC": "30000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "-1"}],
)
async def test_nobody_is_told_who_does_not_watch(manager: socket.socket, environ: dict[str, str]) -> None:
    assert watchdog_limit_s(environ) == 0
    async with Watchdog(environ):
        await asyncio.sleep(0)
    with pytest.raises(BlockingIOError):
        manager.recv(100)
