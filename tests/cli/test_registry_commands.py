"""``ovm login``, ``push`` and ``logout`` against a docker-registry that wants a login."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cache.docker_registry import PASSWORD, USER, docker_registry

if TYPE_CHECKING:
    from tests.cli.conftest import Ovm

pytestmark = pytest.mark.real
CANARY = "c4n4ry-in-the-password"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    with docker_registry(tmp_path / "served", login=True) as address:
        yield address


@pytest.fixture
def demo(ovm: Ovm, tmp_path: Path) -> Ovm:
    """A store with demo:base."""
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bytes(0x202) + b"HdrS" + b"kernel" * 2000)
    ovm.ok("pack", "-t", "demo:base", "--kernel", str(kernel), "--memory=64M")
    return ovm


def test_log_in_push_and_log_out(demo: Ovm, registry: str, tmp_path: Path) -> None:
    target = f"{registry}/team/demo:base"
    refused = demo("push", "demo:base", target, "--format=json")
    assert (refused.code, refused.problem["code"]) == (1, "registry.authentication")
    assert "ovm login" in refused.problem["remedy"]

    wrong = demo("login", "-u", USER, "--password-stdin", registry, stdin=CANARY.encode())
    assert wrong.code == 1
    assert CANARY not in wrong.out + wrong.err
    assert not (tmp_path / ".docker").exists()
    done = demo("login", "-u", USER, "--password-stdin", registry, stdin=f"{PASSWORD}\n".encode())
    assert done.code == 0, done.err
    file = tmp_path / ".docker" / "config.json"
    assert f"logged in to {registry} as {USER}; kept in {file}" in done.err
    assert file.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in done.out + done.err

    first = demo("push", "demo:base", target)
    assert first.code == 0, first.err
    assert first.out.strip() == demo.json("inspect", "demo:base")["digest"]
    assert f"pushed {target}: " in first.err
    demo.ok("tag", "demo:base", target)
    again = demo.json("push", target)
    assert (again["sent_bytes"], again["status"]) == (0, "pushed")
    assert again["there_bytes"] > 0
    other = demo.json("push", "demo:base", f"{registry}/other/demo:base")
    assert (other["sent_bytes"], other["mounted_bytes"]) == (0, again["there_bytes"])

    _referrers(demo, target, tmp_path)
    assert str(file) in demo("logout", registry).err
    assert json.loads(file.read_text())["auths"] == {}
    assert "not logged in" in demo("logout", registry).err
    assert demo("push", target).code == 1


def _referrers(demo: Ovm, target: str, tmp_path: Path) -> None:
    """Of an artifact that is signed after it was pushed, and pushed again."""
    assert demo.json("inspect", "--referrers", target)["referrers"] == []
    demo.ok("generate-key-pair", "--output-key-prefix", str(tmp_path / "team"), COSIGN_PASSWORD="")
    demo.ok("sign", "--key", str(tmp_path / "team.key"), "demo:base", COSIGN_PASSWORD="")
    assert "2 signature manifests attached" in demo("push", target).err
    listed = demo.json("inspect", "--referrers", target)["referrers"]
    assert [(each["where"], each["kind"]) for each in listed] == [
        ("local", "signature"),
        ("local", "signature"),
        (target.partition("/")[0], "signature"),
        (target.partition("/")[0], "signature"),
    ]
    assert {each["digest"] for each in listed[:2]} == {each["digest"] for each in listed[2:]}
    assert demo("inspect", "--referrers", f"{target}-missing").code == 1
    assert demo("inspect", "--referrers", "--raw", target).code == 2


def test_a_snapshot_that_cannot_be_pushed_is_here(ovm: Ovm, registry: str, guest_kernel: Path) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu is not installed")
    target = f"{registry}/team/web:warm"
    try:
        ovm.ok("pack", "-t", "demo:base", "--kernel", str(guest_kernel), "--memory=32M")
        ovm.ok("run", "--runtime=qemu", "--name=web", "demo:base")
        failed = ovm("snapshot", "web", "-t", target, "--format=json")
        assert (failed.code, failed.problem["code"]) == (1, "registry.authentication")
        assert f"the snapshot is here as {target}" in failed.problem["detail"]
        assert failed.problem["remedy"].endswith(f"Then push it: ovm push {target}")
        digest = failed.problem["fields"]["snapshot_ref"]
        assert ovm.json("inspect", target)["digest"] == digest
        assert ovm.json("status", "web")["status"] == "running"

        ovm.ok("login", "-u", USER, "--password-stdin", registry, stdin=PASSWORD.encode())
        assert ovm.json("push", target)["digest"] == digest
        saved = ovm("snapshot", "web", "-t", target)
        assert saved.code == 0, saved.err
        assert re.search(rf"^pushed {re.escape(target)}: .* were there", saved.err, re.MULTILINE)
    finally:
        ovm("rm", "-f", *ovm("ps", "-aq").out.split())
        ovm("serve", "--stop")


def test_wrong_usage(demo: Ovm, registry: str) -> None:
    for words in (
        ("push", "demo:base"),
        ("push", "./demo.tar", "localhost:5000/demo"),
        ("login", "not a host"),
        ("login", "demo"),
        ("login", "--password-stdin", registry),
        ("login", "-u", USER, registry),
        ("login", "-u", USER, "-p", "x", registry),
    ):
        result = demo(*words)
        assert result.code == 2, (words, result.err)


def test_the_password_is_asked_for_on_a_terminal_and_not_shown(demo: Ovm, registry: str, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ovms_supervisor.cli", "login", registry],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=Path(__file__).parents[2],
        env=demo.environment,
        start_new_session=True,
    )
    os.close(slave)
    seen = b""
    try:
        seen += _read_until(master, b"Username")
        os.write(master, f"{USER}\n".encode())
        seen += _read_until(master, b"Password")
        os.write(master, f"{PASSWORD}\n".encode())
        seen += _read_until(master, b"logged in")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)
        os.close(master)
    assert PASSWORD.encode() not in seen
    assert (tmp_path / ".docker" / "config.json").exists()


def _read_until(master: int, wanted: bytes) -> bytes:
    os.set_blocking(master, False)
    seen, limit = b"", time.monotonic() + 30
    while wanted not in seen:
        assert time.monotonic() < limit, seen
        try:
            seen += os.read(master, 4096)
        except BlockingIOError:
            time.sleep(0.02)
    return seen
