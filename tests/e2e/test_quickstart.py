"""The first command of the README: it does what it says, and leaves nothing behind, even when it is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ovms_supervisor.config.directories import default_image_dir
from scripts.demo.build import DemoFiles
from scripts.demo.daemon import processes_of

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-m", "scripts.demo.quickstart"]


@pytest.fixture
def environment(demo: DemoFiles, tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """A home and a temporary directory of its own: what is in there afterwards was left behind."""
    short = Path(tempfile.mkdtemp(prefix="qs-", dir="/tmp"))
    yield os.environ | {
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
        "OVMS_ROOT": str(tmp_path / "store"),
        "TMPDIR": str(short),
    }
    short.rmdir()


def left_behind(environment: Mapping[str, str], said: str) -> list[object]:
    temporary = Path(environment["TMPDIR"])
    listening = re.search(r"listens on (.+)/ovms\.sock", said)
    assert listening is not None, said
    images, _ = default_image_dir(Path(listening[1]), budget_bytes=0)
    return [*temporary.iterdir(), *processes_of(temporary), *([images] if images.exists() else [])]


def test_it_boots_snapshots_and_clones(environment: Mapping[str, str]) -> None:
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "all 8 go on from the snapshot's moment, each on a disk of its own" in done.stderr
    for row in ("cold boot", "snapshot, guest paused", "start of a clone", "shared with the image", "locked"):
        assert row in done.stdout
    assert left_behind(environment, done.stderr) == []
    listed = subprocess.run(["ovm", "ls"], env=environment, capture_output=True, text=True, check=True).stdout
    assert "demo:latest" in listed


@pytest.mark.parametrize(
    ("moment", "number"), [("boot demo:latest", signal.SIGINT), ("clones of demo:fastboot", signal.SIGTERM)]
)
def test_interrupted_it_leaves_nothing(environment: Mapping[str, str], moment: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        COMMAND, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as quick:
        assert quick.stderr is not None
        said = ""
        while moment not in said and (line := quick.stderr.readline()):
            said += line
        quick.send_signal(number)
        said += quick.stderr.read()

    assert quick.returncode == 128 + number, said
    assert "Traceback" not in said
    assert left_behind(environment, said) == []
