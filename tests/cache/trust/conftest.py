from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cache.registry.access import Access, Registries, open_registries
from tests.cache.registry.conftest import FAST
from tests.cache.registry.small_registry import serving
from tests.cache.registry.upload_registry import UploadRegistry


@pytest.fixture(params=[True, False], ids=["api", "tag"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[UploadRegistry]:
    """With the referrers API, and without."""
    async with serving(UploadRegistry(referrers_api=request.param)) as registry:
        yield registry


@pytest.fixture
async def registries(tmp_path: Path) -> AsyncIterator[Registries]:
    async with open_registries(Access(retry=FAST)) as registries:
        yield registries
