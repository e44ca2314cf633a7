from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def rfc_example_bytes() -> bytes:
    """The manifest of RFC §1, its placeholders replaced by digests of real bytes."""
    return (Path(__file__).parent / "samples" / "rfc-example.json").read_bytes()


@pytest.fixture
def rfc_example(rfc_example_bytes: bytes) -> dict[str, Any]:
    """The same as a JSON value of this test's own, to be changed."""
    value: dict[str, Any] = json.loads(rfc_example_bytes)
    return value
