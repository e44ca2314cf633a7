"""From what the caller wrote to an artifact of the local store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from anyio import to_thread

from cache.artifact import Artifact
from cache.file_layout import import_artifact
from cache.store import Store
from ovms_supervisor.instance.host import Host
from ovms_supervisor.instance.plan import Resolved
from spec.admission import check_supported
from spec.api import StartRequest
from spec.digest import Digest
from spec.errors import BlobNotFound, InvalidReference
from spec.reference import PathSource, Reference, Source, parse_source

T = TypeVar("T")
Claim = Callable[[Digest], None]


async def resolve(host: Host, request: StartRequest, claim: Claim | None = None) -> Resolved:
    """Find the artifact, importing a directory or tar and pulling a reference with a registry as the request has it.

    ``claim`` is called in the same visit of a thread, to keep the artifact before anything is looked for in it.
    All its blobs are there. Raises Invalid*, ArtifactNotFound, Corrupt*, Unsafe*, UnsupportedManifest, BlobNotFound,
    and what pulling raises.
    """
    source = parse_source(request.manifest)
    if isinstance(source, Reference) and source.registry is not None:
        may_restore = request.overrides.boot != "cold"
        digest = await host.pulling.find(source, request.pull, ram_snapshot=may_restore)
        return Resolved(request, await to_thread.run_sync(_claimed, host.store, host.store.artifact, digest, claim))
    find = partial(_artifact, host.store)
    return Resolved(request, await to_thread.run_sync(_claimed, host.store, find, source, claim))


def _claimed(store: Store, find: Callable[[T], Artifact], what: T, claim: Claim | None) -> Artifact:
    artifact = find(what)
    if claim is not None:
        claim(artifact.digest)
    check_supported(artifact.manifest)
    artifact.check_roles()
    for blob in artifact.blobs:
        if not store.has_blob(blob.content_digest):
            raise BlobNotFound(f"the store has no blob {blob.digest} of the artifact", digest=blob.digest)
    return artifact


def _artifact(store: Store, source: Source) -> Artifact:
    if not isinstance(source, PathSource):
        return store.artifact(store.resolve(source))
    path = Path(source.path).expanduser()
    if not path.is_absolute():
        raise InvalidReference(
            f"{str(source)!r} is a relative path, and the daemon has a working directory of its own",
            remedy="Give an absolute path.",
        )
    # Without its name: a start is no occasion to let a file rename what is in the store.
    return store.artifact(import_artifact(store, path, None, unnamed=True))
