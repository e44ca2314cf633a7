"""Fixtures of the VMM tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A directory on tmpfs, where RAM files live (and where a mapping's device number is the file's)."""
    with tempfile.TemporaryDirectory(prefix="ovms-test-", dir="/dev/shm") as name:
        yield Path(name)
