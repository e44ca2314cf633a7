"""An artifact of the store to a registry (distribution-spec §Push): its blobs side by side, its manifest last.

What it was made from goes before it, if the registry lacks that: its ``subject`` then exists there. Nothing is sent for
that which the artifact itself does not contain, but for the base's two documents; above all no other memory image. The
signatures that the store keeps of the artifact go with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

from cache.artifact import Artifact, manifest_layer
from cache.registry.blob_places import BlobPlaces
from cache.registry.blob_upload import Outcome, push_blob
from cache.registry.client import Repository
from cache.registry.manifest_upload import push_manifest
from cache.registry.progress import Report, no_report
from cache.registry.side_by_side import side_by_side
from cache.registry.upload import Sizes
from cache.store import Store
from cache.trust.local_signatures import local_signatures
from cache.trust.push_signatures import push_signatures
from spec import media_types
from spec.digest import Digest
from spec.errors import ArtifactNotFound, InvalidReference, NotFound, OvmsError, RegistryRefused
from spec.oci import EMPTY_DESCRIPTOR, Descriptor
from spec.reference import Reference

_SIDE_BY_SIDE: Final = 4

SubjectState = Literal["there", "pushed", "absent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push came to."""

    reference: Reference
    digest: Digest
    subject: SubjectState | None
    """Of what the artifact was made from: it was there, it was pushed too, or the registry does not have it."""
    signatures: int
    """Manifests of signatures that were attached."""
    sent_bytes: int
    there_bytes: int
    """Of blobs that the repository had."""
    mounted_bytes: int
    """Of blobs that the registry took from another repository."""
    blobs: int
    total_ms: float

    @property
    def mb_per_s(self) -> float:
        """Millions of bytes a second that were sent, from the first request to the last."""
        return round(self.sent_bytes / 1e3 / self.total_ms, 1) if self.total_ms else 0.0


async def push(
    store: Store,
    digest: Digest,
    repository: Repository,
    reference: Reference,
    *,
    report: Report = no_report,
    begin: Callable[[Artifact], None] = lambda _: None,
    sizes: Sizes | None = None,
) -> Pushed:
    """Store an artifact in a repository, under the tag of the reference if it has one.

    ``begin`` is told what is going to be pushed. Raises ArtifactNotFound, BlobNotFound, Corrupt and its kinds,
    InvalidReference for a digest that is another one, RegistryError and its kinds.
    """
    if reference.digest not in (None, digest):
        raise InvalidReference(f"{reference} names another artifact than {digest}")
    async with _pinned(store, digest):
        artifact = await asyncio.to_thread(store.artifact, digest)
        begin(artifact)
        return await _Push(store, artifact, repository, report, sizes).run(reference)


class _Push:
    def __init__(
        self, store: Store, artifact: Artifact, repository: Repository, report: Report, sizes: Sizes | None
    ) -> None:
        self._store = store
        self._artifact = artifact
        self._repository = repository
        self._report = report
        self._sizes = sizes
        self._places = BlobPlaces(store.root / "ovms.blobs", store.temp)
        self._elsewhere: dict[Digest, str] = {}
        self._outcomes: list[tuple[Descriptor, Outcome]] = []

    async def run(self, reference: Reference) -> Pushed:
        begin = time.monotonic()
        host, name = self._repository.origin.authority, self._repository.name
        self._elsewhere = await asyncio.to_thread(self._places.elsewhere, host, name)
        try:
            await self._push_blobs(self._artifact)
            subject = await self._push_subject()
            signatures = await self._push_signatures()
            await push_manifest(self._repository, self._artifact.oci_bytes, tag=reference.tag)
        finally:
            there = [blob.content_digest for blob, _ in self._outcomes]
            await asyncio.to_thread(self._places.note, host, name, there)
        return Pushed(
            reference=reference,
            digest=self._artifact.digest,
            subject=subject,
            signatures=signatures,
            sent_bytes=self._bytes("done"),
            there_bytes=self._bytes("there"),
            mounted_bytes=self._bytes("mounted"),
            blobs=len(self._outcomes),
            total_ms=round((time.monotonic() - begin) * 1000, 3),
        )

    async def _push_blobs(self, artifact: Artifact) -> None:
        """The largest first: it is what everybody waits for in the end."""
        done = {blob.digest for blob, _ in self._outcomes}
        missing = sorted((each for each in artifact.blobs if each.digest not in done), key=lambda each: -each.size)
        await side_by_side(self._push_blob, missing, _SIDE_BY_SIDE)

    async def _push_blob(self, blob: Descriptor) -> None:
        digest = blob.content_digest
        # Stores of this project have no file for the empty config until somebody needs it.
        source = media_types.EMPTY_CONFIG if blob.digest == EMPTY_DESCRIPTOR.digest else self._store.blob_path(digest)
        elsewhere = self._elsewhere.get(digest)
        try:
            outcome = await push_blob(
                self._repository, blob, source, mount_from=elsewhere, report=self._report, sizes=self._sizes
            )
        except RegistryRefused:
            # Perhaps because its content is not what its name says: then that is what the user has to know.
            await asyncio.to_thread(self._store.verify_blob, blob)
            raise
        self._outcomes.append((blob, outcome))

    async def _push_subject(self) -> SubjectState | None:
        subject = self._artifact.oci.subject
        if subject is None:
            return None
        if await self._has_manifest(subject.content_digest):
            return "there"
        try:
            base = await asyncio.to_thread(self._store.artifact, subject.content_digest)
        except OvmsError:  # removed, damaged, or no artifact of ours: a manifest may refer to what isn't there
            return "absent"
        ours = {each.digest for each in self._artifact.blobs}
        documents = {base.oci.config.digest, manifest_layer(base.oci).digest}
        if any(each.digest not in ours | documents for each in base.blobs):
            return "absent"
        try:
            await self._push_blobs(base)
        except NotFound:
            return "absent"
        await push_manifest(self._repository, base.oci_bytes)
        return "pushed"

    async def _push_signatures(self) -> int:
        """Those that the store keeps: whoever finds the artifact under its tag finds them too."""
        digest = self._artifact.digest
        signatures = await asyncio.to_thread(local_signatures, self._store, digest)
        if not signatures:
            return 0
        await push_manifest(self._repository, self._artifact.oci_bytes)
        return await push_signatures(self._repository, digest, signatures)

    async def _has_manifest(self, digest: Digest) -> bool:
        try:
            await self._repository.manifest(digest=digest)
        except ArtifactNotFound:
            return False
        return True

    def _bytes(self, outcome: Outcome) -> int:
        return sum(blob.size for blob, found in self._outcomes if found == outcome)


@asynccontextmanager
async def _pinned(store: Store, digest: Digest) -> AsyncIterator[None]:
    """What is being pushed can't be removed meanwhile."""
    await asyncio.to_thread(store.pin, digest)
    try:
        yield
    finally:
        await asyncio.shield(asyncio.to_thread(store.unpin, digest))
