"""A real Linux guest, and a daemon of its own for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from scripts.demo.build import DemoFiles, default_cache, demo_files
from scripts.demo.daemon import Daemon, private_daemon
from scripts.demo.packages import PackageError


@pytest.fixture(scope="session")
def demo() -> DemoFiles:
    """Kernel, initrd and disk of the demo, from the distribution's packages; cached between runs."""
    try:
        return demo_files(default_cache())
    except (PackageError, FileNotFoundError) as error:
        pytest.skip(f"the demo's packages cannot be had here: {error}")
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error.cmd}: {error.stderr}")


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon with a store and a run directory of its own."""
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin:{os.environ['PATH']}")
    with private_daemon() as daemon:
        yield daemon
