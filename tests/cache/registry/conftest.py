from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cache.registry.credentials import Credentials
from cache.registry.retry import RetryPolicy
from cache.registry.session import Session
from cache.registry.tokens import Tokens
from cache.registry.transport import Transport
from tests.cache.registry.small_registry import SmallRegistry, serving

FAST = RetryPolicy(first_s=0.01, longest_s=0.02, longest_asked_s=2)


@pytest.fixture
async def registry() -> AsyncIterator[SmallRegistry]:
    async with serving(SmallRegistry()) as registry:
        yield registry


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with Transport(retry=FAST) as transport:
        yield transport


@pytest.fixture
def auth_file(tmp_path: Path) -> Path:
    return tmp_path / "auth.json"


@pytest.fixture
def session(transport: Transport, auth_file: Path) -> Session:
    """Has the credentials of ``auth_file``, where :func:`log_in` writes."""
    return Session(transport, Tokens(transport, Credentials([auth_file])))


def log_in(auth_file: Path, registry: SmallRegistry, **entry: str) -> None:
    auth_file.write_text(json.dumps({"auths": {registry.host: entry}}))


async def until(condition: Callable[[], object], limit_s: float = 30) -> None:
    """Wait for something that nobody tells us of."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
