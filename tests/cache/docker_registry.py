"""Debian's docker-registry for tests, as it comes: without the referrers API."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER, PASSWORD = "tester", "pass word"
_HTPASSWD = f"{USER}:$2b$04$qTkhxvtr8ryutw6bhS1nVe6XCZ.JefuJfTu2D2RhIvVbnXEDcKmRm"


@contextmanager
def docker_registry(directory: Path, *, login: bool = False) -> Iterator[str]:
    """The registry on the loopback interface, its files in ``directory``; gives host and port.

    ``login``: only USER may use it, with PASSWORD.
    """
    binary = shutil.which("docker-registry")
    if binary is None:
        pytest.skip("docker-registry is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = directory / "registry.json"
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": {"addr": address},
    }
    if login:
        (directory / "htpasswd").write_text(_HTPASSWD)
        settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
    config.write_text(json.dumps(settings))
    process = subprocess.Popen([binary, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(address, process)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not _answers(address):
        assert process.poll() is None, "the registry has ended"
        assert time.monotonic() < deadline, "the registry does not come up"
        time.sleep(0.05)


def _answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status in (200, 401)
    except OSError:
        return False
    finally:
        connection.close()
