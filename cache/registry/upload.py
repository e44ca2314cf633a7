"""One upload under way at a registry: where it goes on, and how much of the blob is there.

distribution-spec v1.1 §Pushing blobs. Of what the registry says of an upload, ``Range`` counts and the digest at the
end; the order of chunks is not something that all of them check.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from aiohttp import ClientResponse
from yarl import URL

from cache.registry.body import BlobPart, Position, Source
from cache.registry.client import Repository
from cache.registry.origin import check_target
from cache.registry.replies import refusal
from cache.registry.retry import RETRIED, retry_after_s
from cache.registry.session import PUSH
from spec.digest import Digest
from spec.errors import DigestMismatch, RegistryError, RegistryGarbage
from spec.oci import Descriptor

SINGLE_BYTES: Final = 4 << 20
"""Up to there a blob goes in one request."""
CHUNK_BYTES: Final = 32 << 20
"""What is sent again at most after a broken connection."""
_LEAST_CHUNK_BYTES: Final = 1 << 20
_GIVE_UP_S: Final = 5.0
_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


class Interrupted(Exception):
    """A step did not succeed, but another try may."""

    def __init__(self, error: RegistryError, asked_s: float | None = None, *, lost: bool = False) -> None:
        super().__init__(str(error))
        self.error: Final = error
        """What to raise if there is no other try."""
        self.asked_s: Final = asked_s
        self.lost: Final = lost
        """The registry does not know the upload any more, or it can't become right."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What goes in one request."""

    single_bytes: int = SINGLE_BYTES
    chunk_bytes: int = CHUNK_BYTES


class Upload:
    """Made by :func:`begin`. Methods may raise Interrupted, besides RegistryError and its kinds."""

    def __init__(self, repository: Repository, blob: Descriptor, sizes: Sizes, reply: ClientResponse) -> None:
        self.offset = 0
        """How many bytes the registry says that it has."""
        self.finished = False
        self.is_single: Final = blob.size <= sizes.single_bytes
        """Whether it goes in one request."""
        self._repository = repository
        self._blob = blob
        least = reply.headers.get("OCI-Chunk-Min-Length", "")
        self._chunk_bytes = max(sizes.chunk_bytes, int(least[:12]) if least.isascii() and least.isdigit() else 0)
        self._sent = 0
        self._asked = False
        self._location = repository.origin
        self._follow(reply, required=True)

    async def advance(self, source: Source, position: Position) -> None:
        """Send the next chunk, or the end."""
        if self.is_single:
            await self._finish(BlobPart(self._blob, source, 0, self._blob.size, position))
        elif self.offset < self._blob.size:
            await self._send_chunk(source, position)
        else:
            await self._finish(None)

    @property
    def is_ending(self) -> bool:
        """Whether the step that failed may have finished it all the same."""
        return self.is_single or self.offset == self._blob.size

    async def ask(self) -> None:
        """Learn how much has arrived. Interrupted with ``lost``: the upload is gone, or there is nothing of it."""
        self._asked = True
        what = f"the question after the upload of {self._blob.digest}"
        async with self._repository.request("GET", self._location, actions=PUSH) as response:
            if response.status not in (200, 204):
                raise Interrupted(await refusal(response, what), lost=True)
            self._follow(response)
            self._take_range(response)
        if self.offset == 0:
            raise Interrupted(self._garbage("nothing of an upload arrived"), lost=True)

    async def give_up(self) -> None:
        """Let the registry forget what has arrived, if it answers soon: it would keep that for days."""
        with suppress(RegistryError, TimeoutError):
            async with (
                asyncio.timeout(_GIVE_UP_S),
                self._repository.request("DELETE", self._location, actions=PUSH, once=True),
            ):
                pass

    async def _send_chunk(self, source: Source, position: Position) -> None:
        end = min(self.offset + self._chunk_bytes, self._blob.size)
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{self.offset}-{end - 1}"}
        body = BlobPart(self._blob, source, self.offset, end, position)
        self._sent = max(self._sent, end)
        async with self._repository.request(
            "PATCH", self._location, actions=PUSH, headers=headers, data=body, once=True
        ) as response:
            if response.status == 413 and self._chunk_bytes > _LEAST_CHUNK_BYTES:
                self._chunk_bytes = max(self._chunk_bytes // 4, _LEAST_CHUNK_BYTES)  # a proxy with a limit of its own
                return
            if response.status != 202:
                raise await self._failure(response, f"a chunk of {self._blob.digest}")
            self._follow(response)
            if "Range" in response.headers:
                self._take_range(response)
        if "Range" not in response.headers:
            await self.ask()
        if self.offset < end:
            raise Interrupted(self._garbage(f"only {self.offset} of {end} bytes arrived"))

    async def _finish(self, body: BlobPart | None) -> None:
        query = f"digest={self._blob.digest.replace(':', '%3A')}"
        url = URL(f"{self._location}{'&' if self._location.raw_query_string else '?'}{query}", encoded=True)
        headers = {"Content-Type": "application/octet-stream"}
        async with self._repository.request(
            "PUT", url, actions=PUSH, headers=headers, data=b"" if body is None else body, once=True
        ) as response:
            if response.status != 201:
                raise await self._failure(response, f"the upload of {self._blob.digest}")
            check_digest_header(response, self._blob.content_digest)
        self.finished = True

    async def _failure(self, response: ClientResponse, what: str) -> Exception:
        error = await refusal(response, what)
        if response.status in RETRIED:
            return Interrupted(error, retry_after_s(response.headers.get("Retry-After")))
        if response.status == 416:
            return Interrupted(error)
        return Interrupted(error, lost=True) if response.status == 404 else error

    def _follow(self, response: ClientResponse, *, required: bool = False) -> None:
        """Go on where the registry says: on itself, and nowhere else."""
        given = response.headers.get("Location")
        if given is None:
            if required:
                raise self._garbage("an upload has no Location")
            return
        try:
            target = self._location.join(URL(given, encoded=True)).with_fragment(None)
            origin = target.origin()
        except ValueError as error:
            raise self._garbage("the Location of an upload is no URL") from error
        check_target(target, self._repository.origin, "the place of an upload")
        if origin != self._repository.origin:
            raise self._garbage(
                f"the place of an upload is on {origin}",
                remedy="Uploads are sent to the registry itself only; a proxy in front of it may have to be told its "
                "scheme and host (X-Forwarded-Proto, Host).",
            )
        self._location = target

    def _take_range(self, response: ClientResponse) -> None:
        given = response.headers.get("Range", "")
        match = _RANGE.fullmatch(given)
        # 0-0 is how an empty upload is told; one that has a single byte is begun again for it.
        offset = 0 if given in ("0-0", "0--1") else int(match[1]) + 1 if match else None
        if offset is None or offset > self._sent:
            error = self._garbage(f"of {self._sent} bytes sent it says that it has {given[:80]!r}")
            if offset is not None and self._asked:  # we asked before it had taken in what a broken connection left
                raise Interrupted(error, lost=True)
            raise error
        self.offset = offset

    def _garbage(self, what: str, remedy: str | None = None) -> RegistryGarbage:
        host = self._repository.origin.authority
        return RegistryGarbage(f"{host}, {self._blob.digest}: {what}", remedy=remedy, host=host)


async def begin(
    repository: Repository, blob: Descriptor, *, mount_from: str | None = None, sizes: Sizes | None = None
) -> Upload | None:
    """Begin an upload. None: it is not needed, since the registry has mounted the blob from the other repository.

    Raises RegistryError and its kinds.
    """
    url = repository.url("blobs", "uploads", "")
    if mount_from is not None:
        url = url.with_query({"mount": blob.digest, "from": mount_from})
    also = () if mount_from is None else (mount_from,)
    headers = {"Content-Length": "0"}
    async with repository.request("POST", url, actions=PUSH, also=also, headers=headers) as response:
        if response.status == 201 and mount_from is not None:
            check_digest_header(response, blob.content_digest)
            return None
        if response.status != 202:
            raise await refusal(response, f"an upload to {repository.name}")
        return Upload(repository, blob, sizes or Sizes(), response)


def check_digest_header(response: ClientResponse, expected: Digest) -> None:
    """Raise DigestMismatch if the registry says that it stored something else than was meant."""
    given = response.headers.get("Docker-Content-Digest")
    if given and given != expected:
        raise DigestMismatch(
            f"{response.url.authority} stored {given[:80]} instead of {expected}", expected=expected, actual=given[:80]
        )
