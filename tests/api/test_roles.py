from __future__ import annotations

import asyncio
import grp
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovms_supervisor.api.caller import Caller
from ovms_supervisor.api.roles import Roles
from spec.errors import InvalidConfig
from tests.api.conftest import Daemon

ME = f"uid:{os.geteuid()}"
SOMEBODY, THEIR_GROUP, OTHER_GROUP = 54321, 54322, 54323

CALLER = """
import os, socket, sys
path, uid, gid, groups, method, target = sys.argv[1:]
os.setgroups([int(each) for each in groups.split(",") if each])
os.setgid(int(gid)); os.setuid(int(uid))
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(20)
    client.connect(path)
    client.sendall(f"{method} {target} HTTP/1.1\\r\\nHost: ovms\\r\\nConnection: close\\r\\n\\r\\n".encode())
    with client.makefile("rb") as reply:
        sys.stdout.buffer.write(reply.read())
"""


def caller(*principals: str) -> Caller:
    return Caller(frozenset(principals), {})


def test_without_a_configuration_everybody_may_change_things() -> None:
    roles = Roles.of(None, ())
    assert not roles.given
    assert roles.may_change(caller("uid:54321"))
    assert roles.may_change(caller())


def test_who_is_listed_as_a_reader_only_looks() -> None:
    roles = Roles.of(None, ("54321", "@54322"))
    assert roles.given
    assert not roles.may_change(caller("uid:54321", "gid:1"))
    assert not roles.may_change(caller("uid:5", "gid:1", "gid:54322"))
    assert roles.may_change(caller("uid:5", "gid:1"))
    assert not roles.may_change(caller())


def test_with_a_list_of_operators_all_others_only_look() -> None:
    roles = Roles.of(("54321", "@54322", "cert:ci"), ())
    assert roles.may_change(caller("uid:54321"))
    assert roles.may_change(caller("uid:5", "gid:54322"))
    assert roles.may_change(caller("cert:ci"))
    assert not roles.may_change(caller("uid:54322", "gid:54321"))
    assert not roles.may_change(caller("cert:other"))
    assert not roles.may_change(caller("token"))
    assert not roles.may_change(caller())
    assert not Roles.of((), ()).may_change(caller("uid:54321"))


def test_root_and_the_daemons_own_user_are_operators() -> None:
    for roles in (Roles.of((), ("0", str(os.geteuid()))), Roles.of(None, ("0", f"@{os.getegid()}"))):
        assert roles.may_change(caller(ME, f"gid:{os.getegid()}"))
        assert roles.may_change(caller("uid:0"))


def test_names_are_looked_up_once() -> None:
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    assert Roles.of((user, f"@{group}"), ()).operators == frozenset({ME, f"gid:{os.getegid()}"})
    for name in ("no-such-user-here", "@no-such-group-here", "@", "cert:", "-1"):
        with pytest.raises(InvalidConfig):
            Roles.of((name,), ())


@pytest.fixture
def open_socket(daemon: Daemon) -> Iterator[Path]:
    """The daemon's socket, which anybody may use."""
    if os.geteuid() != 0:
        pytest.skip("only root can call as somebody else")
    daemon.socket.chmod(0o666)
    opened = [each for each in daemon.socket.parents if not each.stat().st_mode & 0o001]
    for each in opened:
        each.chmod(each.stat().st_mode | 0o001)
    yield daemon.socket
    for each in opened:
        each.chmod(each.stat().st_mode & ~0o001)


async def call(path: Path, method: str, target: str, *, uid: int = SOMEBODY, groups: str = "") -> tuple[int, bytes]:
    arguments = (str(path), str(uid), str(THEIR_GROUP), groups, method, target)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALLER, *arguments, stdout=subprocess.PIPE, cwd="/"
    )
    said, _ = await asyncio.wait_for(child.communicate(), 30)
    return int(said.split()[1]), said.partition(b"\r\n\r\n")[2]


async def test_the_kernel_says_who_calls(daemon: Daemon, open_socket: Path) -> None:
    daemon.context.roles = Roles.of((f"@{OTHER_GROUP}",), ())
    status, body = await call(open_socket, "DELETE", "/instances/nobody")
    assert (status, json.loads(body)["code"]) == (403, "role.not_permitted")
    assert (await call(open_socket, "GET", "/instances"))[0] == 200
    assert (await call(open_socket, "DELETE", "/instances/nobody", groups=f"7,{OTHER_GROUP}"))[0] == 404
    assert (await call(open_socket, "DELETE", "/instances/nobody", uid=0))[0] == 404
    daemon.context.roles = Roles.of(None, (str(SOMEBODY),))
    assert (await call(open_socket, "DELETE", "/instances/nobody"))[0] == 403
    assert (await call(open_socket, "DELETE", "/instances/nobody", uid=SOMEBODY + 1))[0] == 404


async def test_changes_are_logged_with_who_asked_for_them(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    def ask(method: str) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(daemon.socket))
            client.sendall(f"{method} /instances/nobody HTTP/1.1\r\nHost: ovms\r\nConnection: close\r\n\r\n".encode())
            while client.recv(4096):
                pass

    await asyncio.to_thread(ask, "DELETE")
    messages: list[Any] = [record.msg for record in caplog.records]
    [logged] = [each for each in messages if isinstance(each, dict) and each.get("method") == "DELETE"]
    assert (logged["uid"], logged["pid"], logged["status"]) == (os.geteuid(), os.getpid(), 404)
