from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ovms_supervisor.api.context import Context
from ovms_supervisor.api.limits import Limits
from ovms_supervisor.api.listen import listen
from ovms_supervisor.api.serving import serve
from ovms_supervisor.client import Client
from ovms_supervisor.client.http import HttpPool, Reply
from ovms_supervisor.log_setup import logging_to
from ovms_supervisor.loop_lag import LoopLag
from ovms_supervisor.metrics import Metrics
from tests.api.document import judge, judged
from tests.api.fake_supervisor import FakeSupervisor


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    with logging_to("json", "debug"):
        yield


@pytest.fixture(autouse=True)
def _every_exchange_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a session here, the client included, has its requests and replies held to the document."""
    init = aiohttp.ClientSession.__init__

    def judged_init(self: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> None:
        init(self, *args, middlewares=(judged,), **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", judged_init)
    exchange = HttpPool.exchange

    @asynccontextmanager
    async def judged_exchange(
        self: HttpPool, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> AsyncIterator[Reply]:
        async with exchange(self, method, target, headers, body) as reply:
            content = None if reply.is_streamed else await reply.read()
            judge(method, target, body, reply.status, reply.headers, reply.content_type, content)
            yield reply

    monkeypatch.setattr(HttpPool, "exchange", judged_exchange)


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[FakeSupervisor]:
    supervisor = FakeSupervisor(tmp_path)
    yield supervisor
    await supervisor.close()


class Daemon:
    """The real application on a real UNIX socket."""

    def __init__(self, supervisor: Any, socket: Path, images: Any = None, limits: Limits | None = None) -> None:
        self.lag = LoopLag()
        metrics = Metrics(self.lag, images or supervisor.images)
        self.context = Context(supervisor=supervisor, metrics=metrics, lag=self.lag, limits=limits or Limits())
        self.context.drain_s = 2
        self.socket = socket
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        listening = await asyncio.to_thread(listen, self.socket, None)
        await serve(self.context, listening, self._stack, last_s=1)

    async def stop(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def daemon(supervisor: FakeSupervisor, tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(supervisor, tmp_path / "ovms.sock")
    await daemon.start()
    yield daemon
    await daemon.stop()


@pytest.fixture
async def http(daemon: Daemon) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession("http://ovms", connector=aiohttp.UnixConnector(str(daemon.socket))) as session:
        yield session


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[Client]:
    async with Client(daemon.socket) as client:
        yield client


async def problem(response: aiohttp.ClientResponse) -> dict[str, Any]:
    assert response.content_type == "application/problem+json"
    decoded: dict[str, Any] = json.loads(await response.read())
    return decoded
