"""Fixtures of the VMM tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

GUEST_SOURCE = Path(__file__).parents[1] / "guest"


@pytest.fixture(scope="session")
def guest_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test guest (tests/guest/guest.S) as a PVH ELF that both VMMs start."""
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("the test guest is built with GNU binutils, which are not installed")
    kernel = tmp_path_factory.mktemp("guest") / "guest.elf"
    subprocess.run([GUEST_SOURCE / "build", kernel], check=True, timeout=30)
    return kernel
