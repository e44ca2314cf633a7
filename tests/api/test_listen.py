from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ovms_supervisor.api.listen import listen
from spec.errors import DaemonRunning, InvalidConfig


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_socket_is_ours_alone_or_a_groups(tmp_path: Path) -> None:
    with listen(tmp_path / "a.sock", None):
        assert mode(tmp_path / "a.sock") == 0o600
    group = grp.getgrgid(os.getgid()).gr_name
    with listen(tmp_path / "b.sock", group):
        assert mode(tmp_path / "b.sock") == 0o660
    with pytest.raises(InvalidConfig, match="no group"):
        listen(tmp_path / "c.sock", "no-such-group-here")


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "ovms.sock"
    listen(path, None).close()
    assert path.exists()
    with listen(path, None), pytest.raises(DaemonRunning):
        listen(path, None)


def test_what_is_not_a_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "ovms.sock"
    path.write_text("precious")
    with pytest.raises(InvalidConfig, match="not a socket"):
        listen(path, None)
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="107 bytes"):
        listen(tmp_path / ("x" * 120), None)


@pytest.mark.parametrize(("count", "ok"), [("1", True), ("2", False)])
def test_a_socket_given_by_systemd(tmp_path: Path, count: str, ok: bool) -> None:
    code = (
        "import os, sys\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from ovms_supervisor.api.listen import activated\n"
        "print(activated(os.environ).getsockname())\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as given:
        given.bind(str(tmp_path / "given.sock"))
        given.listen()
        done = subprocess.run(
            ["bash", "-c", f'exec "$0" -c "$1" 3<&{given.fileno()}', sys.executable, code],
            pass_fds=[given.fileno()],
            env={**os.environ, "LISTEN_FDS": count},
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode == 0) == ok, done.stderr
    assert ("given.sock" in done.stdout) == ok
    assert ok or "InvalidConfig" in done.stderr


async def test_listening_does_not_need_the_loop(tmp_path: Path) -> None:
    (await asyncio.to_thread(listen, tmp_path / "x.sock", None)).close()
