"""Confinement, tried by programs that are confined: what they see, may and are, and what /proc says about them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spec.errors import HostLimit
from vmm.driver import Confinement, Machine, Ram
from vmm.sandbox.kernel import NAMESPACES, landlock_version
from vmm.sandbox.launcher import answer
from vmm.sandbox.launching import _PROGRAM, Launched, Launcher
from vmm.sandbox.orders import SHARED_BY_ALL, Order
from vmm.sandbox.readback import read_layers
from vmm.sandbox.view import order_for

SHELL = shutil.which("sh") or "/bin/sh"
UID = 734_001
"""Of nobody on this machine."""


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[Launcher]:
    launcher = Launcher(tmp_path / "launcher.log")
    yield launcher
    await launcher.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with ``seen`` and ``own/`` to be given, and ``hidden`` beside them."""
    for name in ("seen", "hidden"):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o666)
    own = tmp_path / "own"
    own.mkdir()
    if os.geteuid() == 0:
        os.chown(own, UID, UID)
    return tmp_path


@pytest.fixture(params=["own uid", "user namespace"])
async def order(request: pytest.FixtureRequest, place: Path, launcher: Launcher) -> Order:
    own_uid = request.param == "own uid"
    if own_uid and os.geteuid() != 0:
        pytest.skip("only root can give a VMM a uid of its own")
    if not own_uid:
        (place / "own").chmod(0o777)
    names = set(NAMESPACES) - ({"user"} | SHARED_BY_ALL if own_uid else set())
    order = Order(
        argv=[SHELL, "-c", "true"],
        environment={"PATH": os.environ["PATH"]},
        fds=[],
        namespaces=sorted(names),
        uid=UID if own_uid else None,
        programs=["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"],
        read_only=[str(place / "seen")],
        writable=[str(place / "own")],
        devices=["/dev/null", "/dev/urandom"],
        limits={"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 100},
        oom_score_adj=500,
    )
    try:
        await run(launcher, order, place / "probe")
    except HostLimit as error:
        pytest.skip(f"this machine gives no namespaces: {error.detail}")
    return order


async def launch(launcher: Launcher, order: Order, out: Path) -> Launched:
    null = os.open(os.devnull, os.O_RDWR)
    written = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        return await launcher.launch(order, [null, written, written])
    finally:
        os.close(null)
        os.close(written)


async def ended(launched: Launched) -> int:
    """The exit status of the program, which is our child."""
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(launched.pidfd, _set, gone)
    try:
        async with asyncio.timeout(30):
            await gone
        status = await asyncio.to_thread(os.waitid, os.P_PIDFD, launched.pidfd, os.WEXITED)
    finally:
        asyncio.get_running_loop().remove_reader(launched.pidfd)
        os.close(launched.pidfd)
    assert status is not None
    return status.si_status


def _set(gone: asyncio.Future[None]) -> None:
    if not gone.done():
        gone.set_result(None)


async def run(launcher: Launcher, order: Order, out: Path) -> tuple[int, str]:
    status = await ended(await launch(launcher, order, out))
    return status, out.read_text()


def script(order: Order, text: str) -> Order:
    return replace(order, argv=[SHELL, "-c", text])


@pytest.mark.parametrize(
    ("text", "works"),
    [
        ("cat {place}/seen", True),
        ("echo x >> {place}/seen", False),
        ("chmod 777 {place}/seen", False),
        ("echo x > {place}/own/file && cat {place}/own/file", True),
        ("cp /bin/true {place}/own/program && {place}/own/program", False),
        ("cat {place}/hidden", False),
        ("ls {place}", False),
        ("ls /", False),
        ("ls /proc/1", False),
        ("echo x > /usr/x", False),
        ("echo x > /dev/null", True),
        ("echo x > /dev/new", False),
        ("ulimit -c unlimited", False),
        ("kill -0 2", False),
    ],
)
async def test_a_program_can_do_what_it_needs_and_nothing_else(
    launcher: Launcher, order: Order, place: Path, text: str, works: bool
) -> None:
    status, said = await run(launcher, script(order, text.format(place=place)), place / "out")
    assert (status == 0) == works, said


async def test_the_kernel_confirms_every_layer(launcher: Launcher, order: Order, place: Path) -> None:
    launched = await launch(launcher, script(order, "read line < /dev/urandom; sleep 60"), place / "out")
    try:
        found = await asyncio.to_thread(read_layers, launched.pid, told_missing=launched.remarks)
        layers = {layer.name: layer for layer in found}
    finally:
        signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
        await ended(launched)
    missing = {name for name, layer in layers.items() if not layer.holds}
    # The filter of system calls is the VMM's own, and a shell has none; a kernel may be without Landlock.
    assert missing <= {"seccomp", *(() if landlock_version() else ("landlock",))}, layers
    assert {"mnt", "pid", "net", "ipc", "uts", "user", "view", "capabilities", "oom", "limits"} <= layers.keys()


def test_a_process_that_is_not_confined_is_not_taken_for_one() -> None:
    layers = {layer.name: layer for layer in read_layers(os.getpid(), confined=False)}
    for name in ("mnt", "pid", "net", "ipc", "uts", "user", "view", "landlock", "oom"):
        assert not layers[name].holds, layers[name]


async def test_descriptors_arrive_under_their_numbers_and_no_others(
    launcher: Launcher, order: Order, place: Path
) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    passed = os.open(place / "seen", os.O_RDONLY)
    out = os.open(place / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    text = "cat <&7; for fd in 3 4 5 6 8 9; do (: <&$fd) 2>/dev/null && echo open $fd; done; true"
    try:
        launched = await launcher.launch(replace(script(order, text), fds=[7]), [null, out, out, passed])
    finally:
        for fd in (null, passed, out):
            os.close(fd)
    assert await ended(launched) == 0
    assert (place / "out").read_text() == "seen"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"argv": ["/usr/bin/no-such-program"]}, "No such file"),
        ({"read_only": ["/no/such/file"]}, "No such file"),
        ({"namespaces": ["time-travel"]}, "time-travel"),
        ({"fds": [7]}, "3 descriptors came"),
    ],
)
async def test_what_cannot_be_started_is_an_error_and_no_process(
    launcher: Launcher, order: Order, place: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(HostLimit, match=said):
        await launch(launcher, replace(order, **change), place / "out")
    assert (await run(launcher, script(order, "echo on"), place / "out")) == (0, "on\n")


def test_the_descriptors_of_a_daemon_with_thousands_of_machines_fit_their_limit(place: Path) -> None:
    ram = Ram(path=place / "ram", size_bytes=4096, private=True)
    machine = Machine(cpus=1, ram=ram, kernel=place / "kernel", initrd=None, kernel_args="")
    confinement = Confinement(uid=None, strict=False)
    for fds in ([], [3, 4], [20000, 20001]):
        order = order_for([SHELL], fds, machine, confinement)
        room = order.limits["RLIMIT_NOFILE"] - max(fds, default=0)
        assert room > len(fds) + 100, "the numbers, copies of them on the way, and what the program opens"


async def test_a_missing_layer_is_told_or_is_an_error_if_it_must_be(
    launcher: Launcher, order: Order, place: Path
) -> None:
    impossible = replace(order, oom_score_adj=5000)
    launched = await launch(launcher, impossible, place / "out")
    assert [layer for layer, _ in launched.remarks] == ["oom"]
    assert await ended(launched) == 0
    with pytest.raises(HostLimit, match="oom"):
        await launch(launcher, replace(impossible, strict=True), place / "out")


async def test_a_launcher_that_was_killed_is_started_again(launcher: Launcher, order: Order, place: Path) -> None:
    assert launcher.pid is not None
    os.kill(launcher.pid, signal.SIGKILL)
    with suppress(HostLimit):  # an order that was on its way when the launcher died
        await run(launcher, order, place / "out")
    assert (await run(launcher, script(order, "echo again"), place / "out")) == (0, "again\n")


async def test_a_caller_that_goes_away_leaves_no_process(launcher: Launcher, order: Order, place: Path) -> None:
    for _ in range(5):
        starting = asyncio.create_task(launch(launcher, script(order, "sleep 60"), place / "out"))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    # Answers come in order: with this one, all before it have come, and were turned away.
    assert (await run(launcher, script(order, "echo last"), place / "out")) == (0, "last\n")


async def test_nothing_runs_of_which_the_daemon_was_never_told(order: Order, place: Path, launcher: Launcher) -> None:
    """A daemon is killed while an order is on its way: what the launcher makes of it ends before any exec."""
    await launcher.close()  # a second one is told what to do here
    mark = place / "own" / "mark"
    await asyncio.to_thread(_tell_and_go_away, script(order, f"echo ran > {mark}"), place / "out")
    async with asyncio.timeout(30):
        while _has_children():  # noqa: ASYNC110 - by CLONE_PARENT it is ours
            await asyncio.sleep(0.01)
    assert not mark.exists()


def _has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _tell_and_go_away(order: Order, out: Path) -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its, out.open("wb") as file:
        program = [sys.executable, "-I", "-S", str(_PROGRAM), str(its.fileno()), *sorted(SHARED_BY_ALL)]
        with subprocess.Popen(program, pass_fds=[its.fileno()]) as second:
            its.close()
            second.send_signal(signal.SIGSTOP)
            socket.send_fds(ours, [order.encode()], [file.fileno()] * 3)
            ours.close()
            second.send_signal(signal.SIGCONT)
            assert second.wait(30) == 0


async def some_stand_by(launcher: Launcher) -> list[int]:
    async with asyncio.timeout(30):
        while len(launcher.standing_by) < 2:  # noqa: ASYNC110 - nobody else needs to be told
            await asyncio.sleep(0.02)
    return launcher.standing_by


async def test_the_next_program_is_executed_by_a_process_that_stood_by(
    launcher: Launcher, order: Order, place: Path
) -> None:
    ready = await some_stand_by(launcher)
    launched = await launch(launcher, script(order, "cat " + str(place / "seen")), place / "out")
    assert launched.pid in ready
    assert await ended(launched) == 0
    assert (place / "out").read_text() == "seen"
    assert not set(await some_stand_by(launcher)) & {launched.pid}


async def test_one_that_was_killed_while_it_stood_by_is_no_loss(launcher: Launcher, order: Order, place: Path) -> None:
    for pid in await some_stand_by(launcher):
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while ") Z " not in Path(f"/proc/{pid}/stat").read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    for _ in range(3):
        assert await run(launcher, script(order, "echo on"), place / "out") == (0, "on\n")


async def test_those_prepared_for_another_form_are_not_used(launcher: Launcher, order: Order, place: Path) -> None:
    ready = await some_stand_by(launcher)
    other = replace(script(order, "echo x > /dev/urandom"), devices=["/dev/null"])
    launched = await launch(launcher, other, place / "out")
    assert launched.pid not in ready
    assert await ended(launched) != 0


def test_a_child_that_is_gone_before_it_may_go_on_does_not_end_the_launcher() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wait, go = os.pipe()
    os.close(wait)  # as the child's end of a process that was killed, or has failed
    with ours, its:
        assert answer(its, {"pid": 1}, [], [go])
        assert ours.recv(100) == b'{"pid": 1}'
        ours.close()
        assert not answer(its, {"pid": 1}, [], [])
    os.close(go)
