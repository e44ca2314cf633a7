"""A docker-registry on the loopback interface, with one blob in it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from scripts.benchmarks.row import NotHere

REPOSITORY = "bench/ram"
_LIMIT_S = 30.0


@contextmanager
def local_registry(directory: Path) -> Iterator[str]:
    """Host and port of a registry whose files are in ``directory``. Raises NotHere."""
    program = shutil.which("docker-registry")
    if program is None:
        raise NotHere("needs docker-registry (scripts/setup --tests)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = directory / "registry.json"
    storage = {"filesystem": {"rootdirectory": str(directory / "registry")}}
    config.write_text(
        json.dumps({"version": 0.1, "log": {"level": "error"}, "storage": storage, "http": {"addr": address}})
    )
    process = subprocess.Popen([program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(_LIMIT_S)


def upload(address: str, blob: Path, digest: str) -> str:
    """Put a blob there; its URL."""
    begin = Request(f"http://{address}/v2/{REPOSITORY}/blobs/uploads/", method="POST", data=b"")
    with urlopen(begin, timeout=_LIMIT_S) as reply:  # noqa: S310
        location = reply.headers["Location"]
    command = ["curl", "-fsS", "-X", "PUT", "-T", str(blob), f"{location}&digest={digest}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return f"http://{address}/v2/{REPOSITORY}/blobs/{digest}"


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while True:
        try:
            with urlopen(f"http://{address}/v2/", timeout=1):
                return
        except (URLError, OSError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotHere("docker-registry does not come up") from error
        time.sleep(0.05)
