from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.ramsnap import EncodedRamsnap
from spec.ramsnap import PAGES_PER_FRAME
from spec.sizes import PAGE_BYTES
from tests.cache.ramsnap.snapshots import Snapshot, page_of


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """Three RAM frames (full, empty, partial) and three state files (one in two frames, one empty)."""
    pages = [*range(PAGES_PER_FRAME), 2 * PAGES_PER_FRAME + 1]
    return Snapshot.write(
        tmp_path / "snapshot",
        {number: page_of(number) for number in pages},
        (2 * PAGES_PER_FRAME + 3) * PAGE_BYTES,
        {"device": b"registers" * 500_000, "empty": b"", "config.json": b'{"cpus":1}'},
    )


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    return tmp_path / "blob"


@pytest.fixture
def encoded(snapshot: Snapshot, blob: Path) -> EncodedRamsnap:
    return snapshot.encode(blob)


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 2 MiB, mounted for the test; needs root."""
    mount = tmp_path / "tmpfs"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", mount], capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs")
    yield mount
    subprocess.run(["umount", mount], check=True)
