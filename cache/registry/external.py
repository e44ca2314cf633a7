"""Refs of a manifest.json that lead elsewhere (RFC §1 notes): to an https URL, or into a registry.

``https://HOST/PATH#sha256:HEX``  is that file; without the digest it is refused.
``HOST/NAME:TAG``, ``HOST/NAME@sha256:HEX``  is the kernel of the artifact of that name for a kernel, its initrd for an
initrd; disks and RAM belong together and are not taken apart. A digest may also be that of the blob itself.
``HOST/NAME:TAG/kernel``, ``…/initrd``  names the part, as the RFC's example does.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import ClientResponse
from yarl import URL

from cache.artifact import Artifact, Part, decode_artifact, decode_oci_manifest, manifest_layer
from cache.registry.access import Registries
from cache.registry.blob_stream import BlobStream, announced_bytes, open_stream
from cache.registry.client import Repository
from cache.registry.download import BlobSource
from cache.registry.origin import check_target
from cache.registry.transport import Transport
from spec import media_types
from spec.digest import Digest
from spec.errors import ArtifactNotFound, BlobNotFound, InvalidReference, UnsupportedManifest
from spec.oci import Descriptor
from spec.reference import Reference, parse_blob_ref, parse_reference

_MEDIA_TYPES: Final = {
    "kernel": media_types.KERNEL,
    "initrd": media_types.INITRD,
    "disk": media_types.DISK_LAYER,
    "ram": media_types.RAMSNAP,
}


_WITH_PART: Final = re.compile(r"(.+/[^/]+:[^/:]+|.+/[^/]+@sha256:[0-9a-f]{64})/(kernel|initrd)")


@dataclass(frozen=True, slots=True)
class External:
    """A blob and where to get it."""

    blob: Descriptor
    source: BlobSource


class ExternalRefs:
    """Finds blobs by such refs."""

    def __init__(self, registries: Registries, *, source: URL | None = None) -> None:
        """``source`` is the registry that the refs come from.

        From there they must not lead to this host's own network or from https to http, any more than a redirect may;
        None: the user wrote them.
        """
        self._registries, self._source = registries, source

    async def find(self, part: Part, ref: str) -> External:
        """The blob of a part (``kernel``, ``initrd``, ``disk``, ``ram``).

        Raises InvalidReference, ArtifactNotFound, BlobNotFound, InvalidManifest, UnsupportedManifest, RegistryError and
        its kinds.
        """
        parsed = parse_blob_ref(ref)
        if parsed.url is not None:
            return await self._file(part, parsed.url, parsed.digest)
        return await self._part(part, ref)

    async def _file(self, part: Part, text: str, digest: Digest | None) -> External:
        if digest is None:
            raise InvalidReference(
                f"{text[:200]} is no ref without its digest: nobody could tell what it is tomorrow",
                remedy="Write https://…#sha256:HEX.",
                ref=text,
            )
        url = URL(text)
        self._check(url)
        file = WebFile(self._registries.transport, url)
        return External(await file.describe(digest, _MEDIA_TYPES[part]), file)

    async def _part(self, part: Part, ref: str) -> External:
        if part not in ("kernel", "initrd"):
            raise UnsupportedManifest(
                f"{ref}: a {part} layer of another artifact",
                remedy="Refer to disks and RAM snapshots by the digest of a layer, or by URL and digest.",
                ref=ref,
            )
        named = _WITH_PART.fullmatch(ref)
        reference = parse_reference(named[1] if named else ref)
        of_kernel = (named[2] if named else part) == "kernel"
        self._check(self._registries.url(reference))
        repository = self._registries.repository(reference)
        try:
            artifact = await _artifact(repository, reference)
        except ArtifactNotFound:
            if reference.digest is None:
                raise
            blob = await repository.describe_blob(reference.digest, _MEDIA_TYPES[part])
            return External(blob, repository)
        found = artifact.kernel if of_kernel else artifact.initrd
        if found is None:
            raise BlobNotFound(f"the artifact {ref} has no initrd", ref=ref)
        return External(found, repository)

    def _check(self, url: URL) -> None:
        if self._source is not None:
            check_target(url, self._source, "a ref of its manifest.json")


async def _artifact(repository: Repository, reference: Reference) -> Artifact:
    """Raises BlobNotFound if its own refs lead elsewhere: that is followed no further."""
    found = await repository.manifest(reference.tag, reference.digest)
    oci = decode_oci_manifest(found.data)
    return decode_artifact(found.data, oci, await repository.read_blob(manifest_layer(oci)))


class WebFile:
    """A file on a web server."""

    def __init__(self, transport: Transport, url: URL) -> None:
        self._transport, self._url = transport, url

    async def describe(self, digest: Digest, media_type: str) -> Descriptor:
        """Its descriptor; the size is what the server says. Raises BlobNotFound, RegistryError and its kinds."""
        async with self._transport.open("GET", self._url, headers={}) as response:  # not all servers know HEAD
            return Descriptor(media_type, digest, await announced_bytes(response, str(self._url)))

    @asynccontextmanager
    async def open_blob(self, blob: Descriptor, start: int = 0) -> AsyncIterator[BlobStream]:
        """Its bytes from ``start`` on, as ``Repository.open_blob`` has them."""

        def get(headers: Mapping[str, str]) -> AbstractAsyncContextManager[ClientResponse]:
            return self._transport.open("GET", self._url, headers=headers)

        async with open_stream(get, blob, start) as stream:
            yield stream
