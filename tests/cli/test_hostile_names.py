"""What artifacts call themselves, as commands print it on a terminal and into a pipe."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, Ovm

AUTHOR = "\x1b]0;owned\x07\x1b[6n\x9b2J\u202egnp.exe"


@pytest.fixture
def hostile(ovm: Ovm, guest_kernel: Path, tmp_path: Path) -> str:
    kernel = tmp_path / "kernel\x1b[2J"
    shutil.copy(guest_kernel, kernel)
    return ovm.ok("pack", "-t", "hostile:1", "--kernel", str(kernel), "--author", AUTHOR, "--args", AUTHOR).strip()


def on_a_terminal(ovm: Ovm, *words: str) -> bytes:
    """What a command writes if stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ovms_supervisor.cli", *words],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd=REPOSITORY,
        env={**ovm.environment, "TERM": "dumb", "NO_COLOR": "1"},
    ) as process:
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 65536):
                written += piece
        except OSError:  # nobody has the other end any more
            pass
        finally:
            os.close(ours)
        assert process.wait(30) == 0
    return written


@pytest.mark.parametrize(
    "words",
    [("ls",), ("inspect", "hostile:1"), ("inspect", "hostile:1", "--raw"), ("inspect", "hostile:1", "--format=json")],
)
def test_a_terminal_has_nothing_to_obey(ovm: Ovm, hostile: str, words: tuple[str, ...]) -> None:
    written = on_a_terminal(ovm, *words).decode()
    assert hostile[:19] in written or "hostile" in written
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(written)


def test_a_pipe_gets_the_bytes_as_they_are(ovm: Ovm, hostile: str) -> None:
    assert AUTHOR[-8:].encode() in ovm("inspect", hostile, "--raw").raw
    assert ovm.json("inspect", hostile)["manifest"]["metadata"]["author"] == AUTHOR
