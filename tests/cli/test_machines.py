"""What users do, with the real daemon and real QEMU guests: pack, run, logs, snapshot, run the snapshot, stop, rm."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Ovm

pytestmark = pytest.mark.real
REPOSITORY = Path(__file__).parents[2]
TICK = re.compile(rb"tick nonce=([0-9a-f]{16}) count=([0-9a-f]{8})")


@pytest.fixture
def host(ovm: Ovm, guest_kernel: Path) -> Iterator[Ovm]:
    """A store with demo:base; whatever was started is removed, and the daemon ended."""
    ovm.ok("pack", "-t", "demo:base", "--kernel", str(guest_kernel), "--memory=32M", "--ivshmem=mmio0:64K")
    yield ovm
    left = ovm("ps", "-aq").out.split()
    if left:
        ovm.ok("rm", "-f", *left)
    ovm("serve", "--stop")


@pytest.fixture
def daemon(host: Ovm) -> Ovm:
    host.ok("serve", "--detach")
    return host


def _ticks(console: bytes) -> list[tuple[bytes, int]]:
    return [(nonce, int(count, 16)) for nonce, count in TICK.findall(console)]


def _wait_for_ticks(ovm: Ovm, machine: str, at_least: int = 2) -> list[tuple[bytes, int]]:
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        ticks = _ticks(ovm("logs", machine).raw)
        if len(ticks) >= at_least:
            return ticks
        time.sleep(0.1)
    raise AssertionError(f"{machine} did not tick: {ovm('logs', machine)} {ovm('status', machine)}")


def test_the_main_job(host: Ovm) -> None:
    started = host("run", "demo:base", "--name", "web")
    assert started.code == 0, started.err
    machine = started.out.strip()
    assert re.fullmatch(r"[0-9a-f-]{36}", machine), "only the id is on stdout"
    assert re.search(r"started the daemon \(pid \d+\), log .*daemon\.log", started.err)
    (original, _), *_ = _wait_for_ticks(host, "web")

    saved = host("snapshot", "web", "-t", "demo:warm")
    assert saved.code == 0, saved.err
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", saved.out.strip())
    assert re.search(r"saved as demo:warm; the machine stood still for [0-9.]+ ms", saved.err)
    moment = _ticks(host("logs", "web").raw)[-1][1]

    clones = host.ok("run", "demo:warm", "--count", "3", "--name", "clone").split()
    assert len(set(clones)) == 3
    for clone in clones:
        nonce, count = _wait_for_ticks(host, clone)[0]
        assert nonce == original, "a clone goes on with the memory of its original"
        assert 0 < count <= moment + 2

    listed = host.ok("ps").splitlines()
    assert listed[0].split()[:4] == ["ID", "NAME", "ARTIFACT", "STATUS"]
    assert len(listed) == 5
    assert sum("restore" in line for line in listed) == 3
    assert set(host.ok("ps", "-q").split()) == {machine, *clones}
    info = host.json("status", "clone-2")
    assert (info["boot"], info["status"], info["name"]) == ("restore", "running", "clone-2")
    assert info["instance_id"] in clones
    assert "clone-2" in host.ok("status", info["instance_id"][:8])

    assert host.ok("stop", "--time", "0", "web", *clones).split() == ["web", *clones]
    assert len(host.ok("ps").splitlines()) == 1
    assert set(host.ok("ps", "-aq").split()) == {machine, *clones}
    host.ok("rm", machine, *clones)
    assert host.ok("ps", "-aq") == ""


def test_several_runs_at_once_start_one_daemon(host: Ovm) -> None:
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: host("run", "demo:base"), range(3)))
    assert [result.code for result in results] == [0, 0, 0], [result.err for result in results]
    assert sum("started the daemon" in result.err for result in results) == 1
    assert len(host.ok("ps", "-q").split()) == 3


def test_run_tells_by_its_code_what_failed(daemon: Ovm, tmp_path: Path, guest_kernel: Path) -> None:
    missing = daemon("run", "demo:typo", "--format=json")
    assert (missing.code, missing.raw, missing.problem["code"]) == (127, b"", "artifact.not_found")
    assert daemon("run", "./nowhere").code == 127
    daemon.ok("pack", "-t", "demo:x", "--kernel", str(guest_kernel))
    daemon.ok("export", "demo:x", str(tmp_path / "x"))
    manifest = tmp_path / "x" / "manifest.json"
    manifest.chmod(0o644)
    document = json.loads(manifest.read_bytes())
    document["metadata"]["platform"]["uefi"] = True
    manifest.write_text(json.dumps(document))
    refused = daemon("run", str(tmp_path / "x"))
    assert refused.code == 126
    assert "UEFI" in refused.err
    taken = daemon("run", "demo:base", "--name", "one")
    assert taken.code == 0
    assert daemon("run", "demo:base", "--name", "one").code == 125


def test_a_directory_is_run_where_the_user_is(daemon: Ovm, tmp_path: Path) -> None:
    """The daemon has another working directory than the command."""
    daemon.ok("export", "demo:base", str(tmp_path / "layout.tar"))
    done = subprocess.run(
        [sys.executable, "-m", "ovms_supervisor.cli", "run", "./layout.tar"],
        cwd=tmp_path, env=daemon.environment, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_logs_follow_until_the_machine_ends(daemon: Ovm) -> None:
    machine = daemon.ok("run", "demo:base").strip()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(daemon, "logs", "-f", machine)
        _wait_for_ticks(daemon, machine, 5)
        daemon.ok("stop", "--time", "0", machine)
        followed = following.result(timeout=30)
    assert followed.code == 0
    counts = [count for _, count in _ticks(followed.raw)]
    assert counts == list(range(counts[0], counts[0] + len(counts))), "no gap, nothing twice"
    assert followed.raw == daemon("logs", machine).raw

    assert len(daemon("logs", "--tail", "2", machine).raw.splitlines()) == 2
    stamped = daemon("logs", "--tail", "1", "--timestamps", machine).out
    assert re.match(r"\d{4}-\d\d-\d\dT[0-9:.]+Z ", stamped)
    lines = [json.loads(line) for line in daemon("logs", "--tail", "2", machine, "--format=json").out.splitlines()]
    assert [set(line) >= {"seq", "ts", "line"} for line in lines[:2]] == [True, True]


def test_logs_on_a_terminal_do_not_obey_the_guest(daemon: Ovm) -> None:
    machine = daemon.ok("run", "demo:base").strip()
    _wait_for_ticks(daemon, machine)
    console = daemon.run_dir / "instances" / machine / "console.log"
    with console.open("ab") as file:  # as the VMM does it: the test guest itself prints nothing of the kind
        file.write(b"\x1b]0;owned\x07\x1b[31mred\x1b[0m\r\n")
    daemon.ok("stop", "--time", "0", machine)
    assert b"\x1b]0;owned" in daemon("logs", machine).raw, "piped, the bytes are the guest's"
    shown = _on_a_terminal(daemon, "logs", machine)
    assert b"^[]0;owned^Gred" in shown
    assert b"\x1b" not in shown


def _on_a_terminal(ovm: Ovm, *words: str) -> bytes:
    controller, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "ovms_supervisor.cli", *words], stdout=terminal, env=ovm.environment, cwd=REPOSITORY
        )
        os.close(terminal)
        shown = bytearray()
        while True:
            try:
                chunk = os.read(controller, 65536)
            except OSError:  # EIO: the last writer is gone
                break
            if not chunk:
                break
            shown += chunk
        assert process.wait(timeout=30) == 0
        return bytes(shown)
    finally:
        os.close(controller)


def test_inject_writes_and_reads(daemon: Ovm) -> None:
    machine = daemon.ok("run", "demo:base").strip()
    daemon.ok("inject", machine, "mmio0", "--data-hex", "01 02 03 04 05 06 07 08")
    assert daemon("inject", machine, "mmio0", "--read", "8").raw == bytes(range(1, 9))
    daemon.ok("inject", machine, "mmio0", "--offset", "0x100", "--text", "grün")
    assert daemon("inject", machine, "mmio0", "--offset", "256", "--read", "5").raw == "grün".encode()
    daemon.ok("inject", machine, "mmio0", "--offset", "512", "--file", "-", stdin=b"\x00\xff")
    assert daemon("inject", machine, "mmio0", "--offset", "512", "--read", "2").raw == b"\x00\xff"
    assert daemon("inject", machine, "other", "--text", "x", "--format=json").problem["code"] == "device.not_found"
    beyond = daemon("inject", machine, "mmio0", "--offset", "0xffff", "--read", "2", "--format=json")
    assert beyond.problem["code"] == "device.out_of_range"
    assert daemon("inject", machine, "mmio0").code == 2
    assert daemon("inject", machine, "mmio0", "--data-hex", "xyz").code == 2


def test_pause_and_resume(daemon: Ovm) -> None:
    machine = daemon.ok("run", "demo:base").strip()
    _wait_for_ticks(daemon, machine)
    assert daemon.ok("pause", machine).split() == [machine]
    assert daemon.json("status", machine)["status"] == "paused"
    again = daemon("pause", machine, "--format=json")
    assert (again.code, again.problem["code"]) == (1, "instance.wrong_state")
    daemon.ok("resume", machine)
    assert daemon.json("status", machine)["status"] == "running"


def test_what_works_is_done_although_something_else_fails(daemon: Ovm) -> None:
    machine = daemon.ok("run", "demo:base").strip()
    result = daemon("rm", "-f", "nobody", machine)
    assert (result.code, result.out.split()) == (1, [machine])
    assert "No such instance" in result.err
    assert daemon.ok("ps", "-aq") == ""


def test_events(daemon: Ovm) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ovms_supervisor.cli", "events", "--format=json"],
        stdout=subprocess.PIPE, env=daemon.environment, cwd=REPOSITORY,
    )  # fmt: skip
    seen: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        seen.extend(json.loads(line)["type"] for line in process.stdout)  # as they come

    reader = threading.Thread(target=read)
    reader.start()
    try:
        time.sleep(1)
        machine = daemon.ok("run", "demo:base").strip()
        daemon.ok("stop", "--time", "0", machine)
        limit = time.monotonic() + 10
        while "instance.stopped" not in seen and time.monotonic() < limit:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=10)
        reader.join()
        assert process.stdout is not None
        process.stdout.close()
    assert {"instance.starting", "instance.running", "instance.stopped"} <= set(seen)
    assert code == 130


def test_machines_outlive_the_daemon(daemon: Ovm) -> None:
    machine = daemon.ok("run", "demo:base").strip()
    before = _wait_for_ticks(daemon, machine)[-1]
    daemon.ok("serve", "--stop")
    without = daemon("ps")
    assert without.code == 0
    assert "left the records of 1;" in without.err
    assert daemon("status", machine).code == 1
    daemon.ok("serve", "--detach")
    assert daemon.ok("ps", "-q").split() == [machine]
    assert _wait_for_ticks(daemon, machine)[-1][1] > before[1]


def test_a_second_daemon_is_refused(daemon: Ovm) -> None:
    result = daemon("serve", "--detach", "--format=json")
    assert (result.code, result.problem["code"]) == (1, "daemon.running")
    result = daemon("serve", "--format=json")
    assert (result.code, result.problem["code"]) == (1, "daemon.running")


def test_a_daemon_that_cannot_start_says_why(ovm: Ovm, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    result = ovm("run", "demo:base", "--root", str(blocked / "root"))
    assert result.code == 125
    assert "the daemon" in result.err
    assert "Traceback" not in result.err


def test_commands_without_a_daemon(ovm: Ovm) -> None:
    result = ovm("status", "x", "--format=json")
    assert (result.code, result.problem["code"]) == (1, "daemon.unreachable")
    assert ovm.json("version")["daemon"] is None
    assert ovm("serve", "--stop").code == 1


def test_doctor(ovm: Ovm) -> None:
    report = json.loads(ovm("doctor", "--format=json").out)
    assert report["can_run"] == (ovm("doctor").code == 0)
    assert report["can_run"], report
    for finding in report["findings"]:
        assert finding["level"] in ("ok", "warn", "fail")
        assert finding["figure"]
        assert finding["level"] == "ok" or finding["why"], finding
    assert {"cpu virtualisation", "runtime qemu", "image directory", "memory lock"} <= {
        finding["check"] for finding in report["findings"]
    }


def test_doctor_finds_what_keeps_machines_from_running(ovm: Ovm) -> None:
    # On a file system that is no tmpfs for sure; /tmp may well be one.
    result = ovm("doctor", OVMS_IMAGE_DIR="/sys/kernel/images", PATH="/nonexistent")
    assert result.code == 1
    assert "fail  image directory" in result.out
    assert "fail  runtime qemu" in result.out
    assert "no machine can run here" in result.err


def test_images_are_listed_and_freed_with_the_daemon_or_without_its_end(host: Ovm) -> None:
    first = host.ok("run", "demo:base").strip()
    host.ok("snapshot", first, "-t", "demo:warm")
    [image] = host.json("images")
    assert (image["references"], image["users"]) == (["demo:warm"], 1)
    assert "demo:warm" in host.ok("images")
    result = host("images", "--free", image["digest"][:20])
    assert (result.code, result.raw) == (1, b"")
    assert "users" in result.err
    assert host.ok("images", "--free") == "", "in use, and nobody insisted"
    host.ok("rm", "-f", first)
    assert host.ok("images", "-q").strip() == image["digest"]
    assert host.ok("images", "--free").strip() == image["digest"]
    second = host.ok("run", "demo:warm").strip()
    third = host.ok("run", "demo:warm").strip()
    stopped = host("serve", "--stop", "--free")
    assert stopped.code == 0
    assert "freed 0 RAM images; 1 stay" in stopped.err
    host.ok("serve", "--detach")
    host.ok("rm", "-f", second, third)
    assert "freed 1 RAM image" in host("serve", "--stop", "--free").err
    images = Path(host.environment["OVMS_IMAGE_DIR"])
    assert not list(images.glob("sha256-*"))
    assert host("serve", "--free").code == 2


def test_prune_with_and_without_a_daemon(host: Ovm, guest_kernel: Path) -> None:
    assert host.ok("prune") == ""
    old = host.json("ls")[0]["digest"]
    host.ok("pack", "-t", "demo:base", "--kernel", str(guest_kernel), "--memory=64M")
    assert old in host.ok("prune", "--dry-run").split()
    assert old in [each["digest"] for each in host.json("ls")]
    machine = host.ok("run", old).strip()
    assert old not in host.ok("prune", "--all").split(), "a machine runs on it"
    host.ok("serve", "--stop")
    assert old not in host.ok("prune", "--all").split(), "also while no daemon does"
    host.ok("serve", "--detach")
    host.ok("rm", "-f", machine)
    reply = host.json("prune")
    assert old in [each["what"] for each in reply["removed"]]
    assert [each["reference"] for each in host.json("ls")] == ["demo:base"]
