"""The real ``ovm``, as a process with directories of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Ovm:
    """Calls ``ovm`` and keeps the directories that it is told to use."""

    root: Path
    run_dir: Path
    environment: dict[str, str]

    def __call__(self, *words: str, stdin: bytes = b"", timeout_s: float = 60, **env: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "ovms_supervisor.cli", *words],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout_s,
            cwd=REPOSITORY,
            env={**self.environment, **env},
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def ok(self, *words: str, **more: Any) -> str:
        """The stdout of a call that must succeed."""
        result = self(*words, **more)
        assert result.code == 0, f"ovm {' '.join(words)}: {result.code}\n{result.out}\n{result.err}"
        return result.out

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--format=json"))


@dataclass
class Result:
    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def problem(self) -> dict[str, Any]:
        """The error of a call with ``--format json``: the last line on stderr."""
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])
        return found


@pytest.fixture
def ovm(tmp_path: Path, tmpfs_dir: Path) -> Ovm:
    inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return Ovm(
        root=tmp_path / "root",
        run_dir=tmpfs_dir / "run",
        environment={
            **inherited,
            "HOME": str(tmp_path),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONDONTWRITEBYTECODE": os.environ.get("PYTHONDONTWRITEBYTECODE", ""),
            "OVMS_ROOT": str(tmp_path / "root"),
            "OVMS_RUN_DIR": str(tmpfs_dir / "run"),
            "OVMS_IMAGE_DIR": str(tmpfs_dir / "images"),
        },
    )


@pytest.fixture(scope="session")
def guest_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test guest (tests/guest/guest.S) as a PVH ELF that both VMMs start."""
    if shutil.which("as") is None or shutil.which("ld") is None:
        pytest.skip("the test guest is built with GNU binutils, which are not installed")
    kernel = tmp_path_factory.mktemp("guest") / "guest.elf"
    subprocess.run(["sh", REPOSITORY / "tests" / "guest" / "build", kernel], check=True)
    return kernel
