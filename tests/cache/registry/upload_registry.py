"""The small registry with repositories, uploads and referrers; interrupts and lies as the test asks for."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web

from spec import media_types
from spec.digest import digest_of, is_digest
from tests.cache.registry.small_registry import SmallRegistry

Wicked = Callable[[web.Request], web.Response | None]


@dataclass
class UploadRegistry(SmallRegistry):
    owned: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Which blobs each repository has; their content is in ``blobs``."""
    types: dict[str, str] = field(default_factory=dict)
    """Content-Type of manifests, by digest."""
    uploads: dict[str, bytearray] = field(default_factory=dict)
    referrers_api: bool = True
    page_size: int = 100
    strict: bool = True
    """Chunks out of order are 416; else they are appended wherever they belong, as by docker-registry 2.8.2."""
    mounts: bool = True
    cuts: deque[int] = field(default_factory=deque)
    """Each upload request that carries a body breaks off after so many bytes, which are kept."""
    keeps_uploads: bool = True
    location: Callable[[str], str] = str
    """What becomes of a true Location."""
    wicked: Wicked = lambda _: None
    """A reply instead of the true one."""
    after: Wicked = lambda _: None
    """A reply instead of the true one, after it has been done."""
    tags: dict[tuple[str, str], str] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if (reply := self.wicked(request)) is not None:
            return reply
        done = await self._answer(request)
        return self.after(request) or done

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        repository, kind, name = _parts(request.path)
        if kind == "uploads":
            return await self._upload(request, repository, name)
        if kind == "referrers":
            return self._referrers(request, repository, name) if self.referrers_api else _error(404, "NOT_FOUND")
        if kind == "manifests":
            if request.method == "PUT":
                return await self._put_manifest(request, repository, name)
            return self._get_manifest(repository, name)
        if name not in self.owned[repository]:
            return _error(404, "BLOB_UNKNOWN")
        return await self._blob(request, self.blobs[name])

    def own(self, repository: str, data: bytes) -> str:
        digest = self.add_blob(data)
        self.owned[repository].add(digest)
        return digest

    def count(self, method: str, part: str) -> int:
        return sum(each.method == method for each in self.seen(part))

    def _challenge(self, request: web.Request) -> web.Response:
        if self.auth == "basic":
            return super()._challenge(request)
        value = f'Bearer realm="{self.url / "token"}",service="small",scope="{_wanted(request)}"'
        return web.Response(status=401, headers={"WWW-Authenticate": value})

    def _is_allowed(self, request: web.Request) -> bool:
        """A token is good for what it was asked for: its scopes are in it."""
        if self.auth != "token":
            return super()._is_allowed(request)
        scopes = request.headers.get("Authorization", "").removeprefix("Bearer token=").split("|")
        return _wanted(request) in scopes or _wanted(request).removesuffix(":pull") + ":pull,push" in scopes

    async def _token(self, request: web.Request) -> web.Response:
        self.token_reply = {"token": "token=" + "|".join(request.query.getall("scope", []))}
        return await super()._token(request)

    async def _upload(self, request: web.Request, repository: str, name: str) -> web.StreamResponse:
        if request.method == "POST":
            mount, source = request.query.get("mount", ""), request.query.get("from", "")
            if self.mounts and mount in self.owned.get(source, set()):
                self.owned[repository].add(mount)
                return web.Response(status=201, headers={"Docker-Content-Digest": mount})
            name = f"{len(self.requests)}"
            self.uploads[name] = bytearray()
            return self._accepted(repository, name)
        if name not in self.uploads:
            return _error(404, "BLOB_UPLOAD_UNKNOWN")
        if request.method == "GET":
            return self._accepted(repository, name, status=204)
        if request.method == "DELETE":
            del self.uploads[name]
            return web.Response(status=204)
        return await self._receive(request, repository, name)

    async def _receive(self, request: web.Request, repository: str, name: str) -> web.StreamResponse:
        data = self.uploads[name]
        start = int(request.headers.get("Content-Range", f"{len(data)}-").split("-")[0])
        if self.strict and start != len(data):
            return self._accepted(repository, name, status=416)
        cut = self.cuts.popleft() if self.cuts and request.content_length else None
        async for chunk in request.content.iter_any():
            data += chunk
            if cut is not None and len(data) - start >= cut:
                del data[start + cut :]
                if not self.keeps_uploads:
                    del self.uploads[name]
                cast(Any, request.transport).close()
                return web.Response(status=500)
        if request.method == "PATCH":
            return self._accepted(repository, name)
        digest = request.query["digest"]
        del self.uploads[name]
        if digest_of(bytes(data)) != digest:
            return _error(400, "DIGEST_INVALID")
        self.own(repository, bytes(data))
        return web.Response(status=201, headers={"Docker-Content-Digest": digest} | self.headers)

    def _accepted(self, repository: str, name: str, status: int = 202) -> web.Response:
        location = self.location(f"/v2/{repository}/blobs/uploads/{name}?state=a%2Fb")
        received = f"0-{max(len(self.uploads[name]) - 1, 0)}"
        return web.Response(status=status, headers={"Location": location, "Range": received} | self.headers)

    async def _put_manifest(self, request: web.Request, repository: str, name: str) -> web.Response:
        data = await request.read()
        document, digest = json.loads(data), digest_of(data)
        if is_digest(name) and name != digest:
            return _error(400, "DIGEST_INVALID")
        for each in (document.get("config"), *document.get("layers", ())):
            if each is not None and each["digest"] not in self.owned[repository]:
                return _error(400, "MANIFEST_BLOB_UNKNOWN")
        self.manifests[digest] = data
        self.types[digest] = request.headers["Content-Type"]
        self.tags[repository, digest] = self.tags[repository, name] = digest
        headers = {"Docker-Content-Digest": digest}
        if self.referrers_api and "subject" in document:
            headers["OCI-Subject"] = document["subject"]["digest"]
        return web.Response(status=201, headers=headers | self.headers)

    def _get_manifest(self, repository: str, name: str) -> web.Response:
        digest = self.tags.get((repository, name))
        if digest is None:
            return _error(404, "MANIFEST_UNKNOWN")
        headers = {"Content-Type": self.types[digest], "Docker-Content-Digest": digest}
        return web.Response(body=self.manifests[digest], headers=headers | self.headers)

    def _referrers(self, request: web.Request, repository: str, subject: str) -> web.Response:
        found = []
        for (owner, name), digest in sorted(self.tags.items()):
            document = json.loads(self.manifests[digest])
            if owner == repository and name == digest and document.get("subject", {}).get("digest") == subject:
                found.append({"mediaType": self.types[digest], "digest": digest, "size": len(self.manifests[digest])})
        start = int(request.query.get("start", 0))
        headers = {"Content-Type": media_types.OCI_INDEX}
        if start + self.page_size < len(found):
            target = request.rel_url.with_query({"start": start + self.page_size})
            headers["Link"] = f'<{self.location(str(target))}>; rel="next"'
        page = found[start : start + self.page_size]
        body = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": page}
        return web.Response(body=json.dumps(body).encode(), headers=headers)


def _parts(path: str) -> tuple[str, str, str]:
    words = path.removeprefix("/v2/").split("/")
    if "uploads" in words:
        return "/".join(words[: words.index("uploads") - 1]), "uploads", words[-1]
    return "/".join(words[:-2]), words[-2], words[-1]


def _wanted(request: web.BaseRequest) -> str:
    action = "pull" if request.method in ("GET", "HEAD") and "/uploads/" not in request.path else "pull,push"
    return f"repository:{_parts(request.path)[0]}:{action}"


def _error(status: int, code: str) -> web.Response:
    return web.json_response({"errors": [{"code": code}]}, status=status)
