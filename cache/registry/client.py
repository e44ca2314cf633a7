"""Reading from a registry: manifests that are checked whole, and blobs as streams of the promised length.

distribution-spec v1.1 §Pull. A tag is resolved once; everything after that goes by digest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import ClientResponse
from yarl import URL

from cache.registry.blob_stream import BlobStream, announced_bytes, open_stream
from cache.registry.body import Body
from cache.registry.origin import Scheme, registry_url
from cache.registry.replies import read_bounded, refusal
from cache.registry.retry import RetryPolicy
from cache.registry.session import PULL, Session
from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import (
    ArtifactNotFound,
    DigestMismatch,
    InvalidReference,
    SizeMismatch,
)
from spec.oci import MAX_MANIFEST_BYTES, Descriptor
from spec.reference import DEFAULT_TAG, Reference

_ACCEPT: Final = f"{media_types.OCI_MANIFEST}, {media_types.OCI_INDEX}"
_LOOK_THERE: Final = (
    "Check the name and tag, and that you may read the repository: some registries hide what you may not."
)


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    """A manifest or index, whose bytes have the digest."""

    digest: Digest
    media_type: str
    """As the registry calls it; what the document says of itself counts."""
    data: bytes


class Repository:
    """One repository of one registry. All methods may raise RegistryError and its kinds."""

    def __init__(self, session: Session, reference: Reference, schemes: Mapping[str, Scheme] | None = None) -> None:
        """``schemes``: http or https for single hosts, see :func:`registry_url`. Raises InvalidReference."""
        if reference.registry is None:
            raise InvalidReference(f"{reference} names no registry", remedy="Write HOST[:PORT]/NAME[:TAG].")
        self.name: Final = reference.repository
        self._session = session
        self._base = registry_url(reference.registry, schemes or {})

    async def resolve(self, tag: str) -> Digest:
        """The digest that a tag has now. Raises ArtifactNotFound.

        The manifest itself is read, not only its head: the digest is computed, not believed.
        """
        return (await self.manifest(tag)).digest

    async def manifest(self, tag: str | None = None, digest: Digest | None = None) -> FetchedManifest:
        """A manifest by digest, or by tag if there is no digest. Raises ArtifactNotFound, DigestMismatch."""
        name = digest or tag or DEFAULT_TAG
        what = f"manifest {self.name}{'@' if digest else ':'}{name}"
        async with self._get("manifests", name, {"Accept": _ACCEPT}) as response:
            if response.status == 404:
                raise ArtifactNotFound(f"{self._base.authority} has no {what}", remedy=_LOOK_THERE, reference=name)
            if response.status != 200:
                raise await refusal(response, what)
            data = await read_bounded(response, MAX_MANIFEST_BYTES, what)
            announced = response.headers.get("Docker-Content-Digest")
            media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        actual = digest_of(data)
        for expected in (digest, announced):
            if expected and expected != actual:
                raise DigestMismatch(
                    f"{self._base.authority} sent {what} with the digest {actual} instead of {expected[:80]}",
                    expected=expected[:80],
                    actual=actual,
                )
        return FetchedManifest(actual, media_type, data)

    async def has_blob(self, digest: Digest, *, actions: str = PULL) -> bool:
        """Whether the registry says that it has the blob in this repository."""
        async with self.request("HEAD", self.url("blobs", digest), actions=actions) as response:
            if response.status in (200, 404):
                return response.status == 200
            raise await refusal(response, f"blob {digest}")

    async def read_blob(self, blob: Descriptor, *, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        """A small blob, checked. Raises BlobNotFound, SizeMismatch (also beyond ``max_bytes``), DigestMismatch."""
        if blob.size > max_bytes:
            raise SizeMismatch(f"{blob.digest} has {blob.size} bytes, more than {max_bytes}", limit_bytes=max_bytes)
        async with self.open_blob(blob) as stream:
            data = b"".join([chunk async for chunk in stream])
        if (actual := digest_of(data)) != blob.digest:
            raise DigestMismatch(
                f"{self._base.authority} sent {actual} instead of {blob.digest}", expected=blob.digest, actual=actual
            )
        return data

    @asynccontextmanager
    async def open_blob(self, blob: Descriptor, start: int = 0) -> AsyncIterator[BlobStream]:
        """The bytes of a blob from ``start``, exactly as many as its descriptor promises; the caller hashes them.

        If the registry can't begin in the middle, the stream says so by its own ``start`` of 0.
        Raises BlobNotFound, SizeMismatch.
        """

        def get(headers: Mapping[str, str]) -> AbstractAsyncContextManager[ClientResponse]:
            return self._get("blobs", blob.digest, headers)

        async with open_stream(get, blob, start) as stream:
            yield stream

    async def describe_blob(self, digest: Digest, media_type: str) -> Descriptor:
        """The descriptor of a blob of which only the digest is known; its size is what the registry says.

        Raises BlobNotFound.
        """
        async with self.request("HEAD", self.url("blobs", digest)) as response:
            return Descriptor(media_type, digest, await announced_bytes(response, f"blob {digest}"))

    @asynccontextmanager
    async def _get(self, kind: str, name: str, headers: Mapping[str, str]) -> AsyncIterator[ClientResponse]:
        async with self.request("GET", self.url(kind, name), headers=headers) as response:
            yield response

    def url(self, *parts: str) -> URL:
        """An endpoint of the repository."""
        return self._base.joinpath("v2", *self.name.split("/"), *parts)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: URL,
        *,
        actions: str = PULL,
        also: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        data: bytes | Body | None = None,
        once: bool = False,
    ) -> AsyncIterator[ClientResponse]:
        """The reply to any request about the repository, see ``Session.open``."""
        async with self._session.open(
            method, url, self.name, actions=actions, also=also, headers=headers, data=data, once=once
        ) as response:
            yield response

    @property
    def retry(self) -> RetryPolicy:
        """For those who try again themselves."""
        return self._session.retry

    @property
    def origin(self) -> URL:
        """Scheme, host and port of the registry."""
        return self._base
