"""A life with secrets in it, after which none is found where others look: logs, events, journals, process lists."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cache.docker_registry import PASSWORD, USER, docker_registry
from tests.cli.conftest import Ovm

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

WRONG = "c4n4ry-wrong-password"
KEY_PASSWORD = "c4n4ry-key-password"
INJECTED = "c4n4ry-injected"
SECRETS = {
    "registry password": PASSWORD.encode(),
    "its header": base64.b64encode(f"{USER}:{PASSWORD}".encode()),
    "wrong password": WRONG.encode(),
    "its header too": base64.b64encode(f"{USER}:{WRONG}".encode())[:-4],
    "password of a key": KEY_PASSWORD.encode(),
    "what is injected": INJECTED.encode(),
    "the same in JSON": base64.b64encode(INJECTED.encode())[:-4],
}


def found_in(content: bytes) -> set[str]:
    return {name for name, secret in SECRETS.items() if secret in content}


@contextmanager
def watching_processes() -> Iterator[set[str]]:
    """What the arguments of any process show meanwhile."""
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):  # each command lives for some tenths of a second
            for each in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen.update(found_in(each.read_bytes()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("ovms", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = _Connection(path)
    try:
        connection.request(method, target, body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def events(path: Path) -> bytes:
    """All that the daemon has published so far."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        client.connect(str(path))
        client.sendall(b"GET /events?since=0 HTTP/1.1\r\nHost: ovms\r\n\r\n")
        said = b""
        with suppress(TimeoutError):
            while piece := client.recv(65536):
                said += piece
        return said


def test_no_secret_is_where_others_look(ovm: Ovm, guest_kernel: Path, tmp_path: Path) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu is not installed")
    ovm.environment["OVMS_LOG_LEVEL"] = "debug"
    socket_path = ovm.run_dir / "ovms.sock"
    (tmp_path / "served").mkdir()
    said = b""
    with docker_registry(tmp_path / "served", login=True) as registry, watching_processes() as in_processes:
        try:
            said = _live(ovm, guest_kernel, registry, socket_path, tmp_path)
            said += events(socket_path)
            assert b"instance.running" in said
        finally:
            ovm("stop", "web", "--time", "0")
            ovm("serve", "--stop")
    assert found_in(said) == set()
    assert in_processes == set()
    logs = [each for each in ovm.run_dir.rglob("*") if each.is_file()]
    assert any(b'"/inject"' in each.read_bytes() for each in logs), "the log of the daemon tells of what was done"
    assert any(each.name == "journal.json" for each in logs)
    stored = [each for each in ovm.root.rglob("*") if each.is_file() and "blobs" not in each.parts]
    for each in (*logs, *stored):
        assert found_in(each.read_bytes()) == set(), each
    assert found_in(b" " + KEY_PASSWORD.encode()) == {"password of a key"}


def _live(ovm: Ovm, guest_kernel: Path, registry: str, socket_path: Path, tmp_path: Path) -> bytes:
    """Whatever takes a secret; returns all that was said about it."""
    said = b""

    def run(*words: str, stdin: bytes = b"", fails: bool = False, **env: Any) -> None:
        nonlocal said
        result = ovm(*words, stdin=stdin, **env)
        said += result.raw + result.err.encode()
        assert (result.code != 0) == fails, (words, result.err)

    def call(method: str, target: str, body: bytes, status: int) -> None:
        nonlocal said
        got, reply = ask(socket_path, method, target, body)
        said += reply
        assert got == status, reply

    name = f"{registry}/team/demo:base"
    run("pack", "-t", name, "--kernel", str(guest_kernel), "--memory=32M", "--ivshmem=mmio0:64K")
    run("run", "--runtime=qemu", "--name=web", name)
    run("login", "-u", USER, "--password-stdin", registry, stdin=WRONG.encode(), fails=True)
    run("login", "-u", USER, "--password-stdin", registry, stdin=PASSWORD.encode())
    for broken in (False, True):
        if broken:
            _change_password(tmp_path / ".docker" / "config.json")
        run("push", name, fails=broken)
        body = json.dumps({"reference": name, "policy": "always", "wait": True}).encode()
        call("POST", "/pull", body, 502 if broken else 200)
    prefix = str(tmp_path / "team")
    run("generate-key-pair", "--output-key-prefix", prefix, COSIGN_PASSWORD=KEY_PASSWORD)
    run("sign", "--key", f"{prefix}.key", name, COSIGN_PASSWORD=KEY_PASSWORD)
    run("sign", "--key", f"{prefix}.key", name, COSIGN_PASSWORD=f"{KEY_PASSWORD}-not", fails=True)

    run("inject", "web", "mmio0", "--file", "-", stdin=INJECTED.encode())
    run("inject", "web", "mmio0", "--offset=65530", "--file", "-", stdin=INJECTED.encode(), fails=True)
    write = {"device": "mmio0", "text": INJECTED}
    call("POST", "/inject", _inject({**write, "offset": 65530}), 400)
    call("POST", "/inject", _inject({**write, "offset": INJECTED}), 400)
    call("POST", "/inject", _inject({"device": "mmio0", "data": f"{INJECTED}!"}), 400)
    call("POST", "/inject", _inject(write)[:-1], 400)
    return said


def _inject(write: Mapping[str, object]) -> bytes:
    return json.dumps({"instance_id": "web", "content": {"mmio": [write]}}).encode()


def _change_password(file: Path) -> None:
    wrong = base64.b64encode(f"{USER}:{WRONG}".encode()).decode()
    file.write_text(re.sub(r'("auth": *")[^"]*', rf"\g<1>{wrong}", file.read_text()))
