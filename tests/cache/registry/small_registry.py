"""A registry for tests, as strict as the specification and as wicked as the test asks for."""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from spec import media_types
from spec.digest import digest_of

USER, PASSWORD, IDENTITY, TOKEN = "me", "pass:word", "identity", "access"


@dataclass
class SmallRegistry:
    auth: str = ""
    """``basic``, ``token``, or nothing."""
    realm: str = ""
    ranges: bool = True
    cut_after: int | None = None
    """Blobs break off after that many bytes of a reply."""
    cuts: deque[int] = field(default_factory=deque)
    """The next replies break off so, one each."""
    refuses_ranges: bool = False
    """With 416, whatever is asked for."""
    chunked: bool = False
    """Blobs come without Content-Length."""
    chunk_wait_s: float = 0.0
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    """Of replies to manifests, instead of the true ones."""
    faults: deque[web.Response] = field(default_factory=deque)
    """Given instead of an answer, one each."""
    requests: list[web.BaseRequest] = field(default_factory=list)
    most_at_once: int = 0
    """Blobs that were under way at the same time."""
    token_reply: object = None
    url: URL = field(default_factory=URL)
    _at_once: int = 0

    @property
    def host(self) -> str:
        return self.url.authority

    def seen(self, part: str) -> list[web.BaseRequest]:
        return [each for each in self.requests if part in each.path]

    def add_blob(self, data: bytes) -> str:
        self.blobs[digest_of(data)] = data
        return digest_of(data)

    def add_manifest(self, data: bytes, tag: str) -> str:
        self.manifests[tag] = self.manifests[digest_of(data)] = data
        return digest_of(data)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.path == "/token":
            return await self._token(request)
        if self.auth and not self._is_allowed(request):
            return self._challenge(request)
        if self.faults:
            return self.faults.popleft()
        return await self.answer(request)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """To a request that is allowed."""
        if request.path == "/v2/":
            return web.Response()
        parts = request.path.split("/")
        kind, name = parts[-2], parts[-1]
        if kind == "manifests":
            return self._manifest(request, name)
        if kind == "blobs" and name in self.blobs:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                return await self._blob(request, self.blobs[name])
            finally:
                self._at_once -= 1
        return web.json_response({"errors": [{"code": "UNKNOWN", "message": "not\nhere"}]}, status=404)

    def _is_allowed(self, request: web.Request) -> bool:
        wanted = {"basic": f"Basic {basic(USER, PASSWORD)}", "token": f"Bearer {TOKEN}"}
        return request.headers.get("Authorization") == wanted[self.auth]

    def _challenge(self, request: web.Request) -> web.Response:
        if self.auth == "basic":
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        realm = self.realm or str(self.url / "token")
        repository = "/".join(request.path.split("/")[2:-2])
        value = f'Bearer realm="{realm}",service="small",scope="repository:{repository}:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": value})

    async def _token(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            form = await request.post()
            allowed = form["grant_type"] == "refresh_token" and form["refresh_token"] == IDENTITY
        else:
            allowed = request.headers.get("Authorization") == f"Basic {basic(USER, PASSWORD)}"
        if not allowed:
            return web.json_response({"errors": [{"code": "DENIED"}]}, status=401)
        return web.json_response({"token": TOKEN} if self.token_reply is None else self.token_reply)

    def _manifest(self, request: web.Request, name: str) -> web.Response:
        data = self.manifests.get(name)
        if data is None or media_types.OCI_MANIFEST not in request.headers.get("Accept", ""):
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        headers = {"Content-Type": media_types.OCI_MANIFEST, "Docker-Content-Digest": digest_of(data)} | self.headers
        return web.Response(body=data, headers=headers)

    async def _blob(self, request: web.Request, data: bytes) -> web.StreamResponse:
        start, status, headers = 0, 200, {"Accept-Ranges": "bytes"}
        if self.refuses_ranges and "Range" in request.headers:
            return web.Response(status=416)
        if self.ranges and "Range" in request.headers:
            start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
            status, headers = 206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        response = web.StreamResponse(status=status, headers=headers | self.headers)
        body = data[start:]
        if self.chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = len(body)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        cut_after = self.cuts.popleft() if self.cuts else self.cut_after
        end = len(body) if cut_after is None else min(cut_after, len(body))
        for offset in range(0, end, 65536):
            await response.write(body[offset : min(offset + 65536, end)])
            await asyncio.sleep(self.chunk_wait_s)
        if end < len(body):
            cast(asyncio.Transport, request.transport).close()
        return response


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


R = TypeVar("R", bound=SmallRegistry)


@asynccontextmanager
async def serving(registry: R) -> AsyncIterator[R]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", registry.handle)
    async with TestServer(app, host="127.0.0.1") as server:
        registry.url = server.make_url("/").origin()
        yield registry
