"""An artifact from a registry into the store (distribution-spec §Pull): its documents first, then its blobs.

Nothing is listed before all of it is here and every digest and size holds. Blobs that have arrived stay when the pull
fails or is cancelled, so that the next one need not fetch them; unless the disk is full.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cache.artifact import Artifact, ExternalRef, decode_artifact, decode_oci_manifest, external_refs, manifest_layer
from cache.partial_blob import PartialBlob
from cache.registry.access import Registries
from cache.registry.blob_places import BlobPlaces
from cache.registry.client import FetchedManifest, Repository
from cache.registry.download import BlobSource, Download, Downloads, Fetched
from cache.registry.external import ExternalRefs
from cache.registry.index_choice import HostPlatform, choose_entry, is_index
from cache.resolution import encode_resolution
from cache.resolved_store import keep_resolution
from cache.store import Store
from cache.threads import ended
from spec.admission import check_supported
from spec.digest import Digest
from spec.errors import BlobNotFound, Corrupt, InvalidManifest, NoSpace
from spec.fault_points import reach
from spec.manifest import decode_manifest
from spec.oci import EMPTY_DESCRIPTOR, MAX_MANIFEST_BYTES, Descriptor
from spec.reference import Reference

T = TypeVar("T")

_SIDE_BY_SIDE: Final = 4


async def _approve(_: Artifact, __: Repository) -> None:
    """Everything is admitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """What a pull needs to know."""

    platform: Callable[[], Awaitable[HostPlatform]]
    """Asked only if the reference turns out to be an index."""
    downloads: Downloads = field(default_factory=Downloads)
    approve: Callable[[Artifact, Repository], Awaitable[None]] = _approve
    """Raises what speaks against the artifact, before any of its blobs is fetched."""
    registries: Registries | None = None
    """To resolve refs of manifest.json to URLs and registries; None: they are refused."""
    begin: Callable[[Artifact], None] = lambda _: None
    """Told what is going to be fetched: the digest is known from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """An artifact that is in the store now, and what that took."""

    reference: Reference
    digest: Digest
    index: Digest | None
    """The index that the reference named, if it was one."""
    network_bytes: int
    """What came over the network for blobs."""
    resumed_bytes: int
    """What an earlier, unfinished download had brought."""
    there_bytes: int
    """Of blobs that were in the store."""
    blobs: int
    total_ms: float
    resident_ms: float | None = None
    """From the first request until its RAM image was resident, too, if that was asked for and there is one."""
    resident_bytes: int | None = None
    """The size of that image."""

    @property
    def mb_per_s(self) -> float:
        """Millions of bytes a second that came over the network, from the first request to the listed artifact."""
        return self.network_bytes / 1e3 / self.total_ms if self.total_ms else 0.0


async def pull(store: Store, repository: Repository, reference: Reference, options: PullOptions) -> Pulled:
    """Bring an artifact and all its blobs into the store, under the reference's name if it has a tag.

    The tag is resolved once. Raises ArtifactNotFound, BlobNotFound, Corrupt and its kinds, InvalidManifest,
    UnsupportedManifest, NoSpace, RegistryError and its kinds, and what ``approve`` raises.
    """
    return await _Pull(store, repository, reference, options).run()


def wanted_of(artifact: Artifact) -> list[Descriptor]:
    """The blobs to be fetched: all but the empty config, whose content everybody knows."""
    return [each for each in (*artifact.blobs, *artifact.external_blobs) if each != EMPTY_DESCRIPTOR]


class _Pull:
    def __init__(self, store: Store, repository: Repository, reference: Reference, options: PullOptions) -> None:
        self._store, self._repository, self._reference, self._options = store, repository, reference, options
        self._documents: list[Digest] = []
        self._arrived: list[Digest] = []
        self._wanted: list[Descriptor] = []
        self._sources: dict[str, BlobSource] = {}
        self._index: Digest | None = None

    async def run(self) -> Pulled:
        begin = time.monotonic()
        try:
            artifact = await self._describe()
            fetched = await self._fetch(wanted_of(artifact))
            name = self._reference.local_name if self._reference.tag else None
            digest = await _to_its_end(asyncio.to_thread(self._list, artifact, name))
            reach("pull.listed")
        except NoSpace:
            await _to_its_end(asyncio.to_thread(self._clear))
            raise
        except BaseException:
            await _to_its_end(asyncio.to_thread(self._give_up))
            raise
        await _to_its_end(asyncio.to_thread(self._store.leave, [*self._documents, *self._arrived]))
        await asyncio.to_thread(self._note_places, artifact)
        return Pulled(
            reference=self._reference,
            digest=digest,
            index=self._index,
            network_bytes=sum(each.network_bytes for _, each in fetched),
            resumed_bytes=sum(each.resumed_bytes for _, each in fetched),
            there_bytes=sum(blob.size for blob, each in fetched if each == Fetched()),
            blobs=len(fetched),
            total_ms=(time.monotonic() - begin) * 1000,
        )

    def _list(self, artifact: Artifact, name: str | None) -> Digest:
        if artifact.resolved:
            keep_resolution(self._store, artifact)
        return self._store.put_artifact(artifact.oci_bytes, name)

    def _clear(self) -> None:
        """Give the disk back: who makes room for another try has room for all of it."""
        self._store.discard([*self._documents, *self._arrived])
        for blob in self._wanted:
            partial = PartialBlob(self._store.partial_dir, blob)
            if partial.acquire():
                partial.remove()

    def _note_places(self, artifact: Artifact) -> None:
        """Where the blobs are, for a push to another repository of that registry."""
        places = BlobPlaces(self._store.root / "ovms.blobs", self._store.temp)
        blobs = [each.content_digest for each in artifact.blobs]
        places.note(self._repository.origin.authority, self._repository.name, blobs)

    def _give_up(self) -> None:
        self._store.leave(self._arrived)
        self._store.discard(self._documents)

    async def _describe(self) -> Artifact:
        """The artifact with its documents in the store, which from then on keeps the blobs that are there already."""
        found = await self._manifest()
        oci = await asyncio.to_thread(decode_oci_manifest, found.data)
        manifest_bytes = await self._manifest_json(manifest_layer(oci))
        resolved = await self._resolve(external_refs(await asyncio.to_thread(decode_manifest, manifest_bytes), oci))
        artifact = await asyncio.to_thread(decode_artifact, found.data, oci, manifest_bytes, lambda: resolved)
        check_supported(artifact.manifest)
        await self._options.approve(artifact, self._repository)
        self._options.begin(artifact)
        for document in (artifact.oci_bytes, artifact.manifest_bytes, *_note(artifact)):
            await _to_its_end(asyncio.to_thread(self._put, document))
        reach("pull.documents")
        return artifact

    async def _resolve(self, refs: list[ExternalRef]) -> dict[ExternalRef, Descriptor]:
        registries = self._options.registries
        if not refs or registries is None:
            return {}
        external = ExternalRefs(registries, source=self._repository.origin)
        found = {each: await external.find(each.part, each.ref) for each in refs}
        self._sources = {each.blob.digest: each.source for each in found.values()}
        return {ref: each.blob for ref, each in found.items()}

    def _put(self, document: bytes) -> None:
        self._documents.append(self._store.put_bytes(document))

    async def _manifest(self) -> FetchedManifest:
        reference = self._reference
        found = await self._repository.manifest(reference.tag, reference.digest)
        if not await asyncio.to_thread(is_index, found.data):
            return found
        self._index = found.digest
        entry = await asyncio.to_thread(choose_entry, found.data, await self._options.platform(), str(reference))
        if entry.size > MAX_MANIFEST_BYTES:
            raise InvalidManifest(f"{entry.digest} has {entry.size} bytes, more than {MAX_MANIFEST_BYTES}", path="$")
        return await self._repository.manifest(digest=entry.content_digest)

    async def _manifest_json(self, layer: Descriptor) -> bytes:
        try:
            return await asyncio.to_thread(self._store.read_blob, layer)
        except (BlobNotFound, Corrupt):
            return await self._repository.read_blob(layer)

    async def _fetch(self, blobs: Iterable[Descriptor]) -> list[tuple[Descriptor, Fetched]]:
        """All blobs, some side by side, the largest first: the longest is what everybody waits for in the end."""
        free = asyncio.Semaphore(_SIDE_BY_SIDE)
        how, store = self._options.downloads, self._store

        async def fetch(blob: Descriptor) -> tuple[Descriptor, Fetched]:
            source = self._sources.get(blob.digest, self._repository)
            async with free:
                return blob, await Download(store, source, blob, how, self._arrived.append).run()

        self._wanted = sorted(blobs, key=lambda each: -each.size)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(fetch(each)) for each in self._wanted]
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        return [each.result() for each in tasks]


def _note(artifact: Artifact) -> list[bytes]:
    return [encode_resolution(artifact.descriptor, artifact.resolved)] if artifact.resolved else []


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of several: one is what the user can act on, and it has cancelled the others."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of work on the store that must not be left half accounted for; cancelled only afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await ended(task)
        raise
