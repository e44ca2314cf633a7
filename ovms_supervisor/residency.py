"""The RAM image of an artifact that is being pulled: made while its blob arrives, or right afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from anyio.to_thread import run_sync

from cache.registry.sink import BlobSink
from cache.resident import ResidentImages
from cache.store import Store
from spec import media_types
from spec.digest import Digest
from spec.oci import Descriptor


@dataclass(frozen=True, slots=True)
class Residency:
    """For one event loop."""

    images: ResidentImages
    store: Store

    def sink_for(self, blob: Descriptor) -> BlobSink | None:
        """Who takes a blob while it is downloaded: a RAM snapshot is resident as soon as its digest holds."""
        return self.images.arrival(blob) if blob.media_type == media_types.RAMSNAP else None

    async def ensure(self, digest: Digest) -> int | None:
        """Have the RAM image of an artifact resident, and locked if its manifest says so.

        The image's size in bytes; None: the artifact has no RAM snapshot. It stays until its room is needed. Raises
        what ``ResidentImages.lease`` does.
        """
        artifact = await run_sync(self.store.artifact, digest)
        snapshot, blob = artifact.manifest.ram_snapshot, artifact.ramsnap
        if snapshot is None or blob is None:
            return None
        async with self.images.lease(
            blob.content_digest,
            self.store.blob_path(blob.content_digest),
            mlock_required=snapshot.mlock_required,
            preload=snapshot.preload_hint,
        ) as image:
            return image.header.memory_bytes
