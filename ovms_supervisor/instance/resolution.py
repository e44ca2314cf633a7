"""From what the caller wrote to an artifact of the local store."""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread

from cache.artifact import Artifact
from cache.file_layout import import_artifact
from cache.store import Store
from ovms_supervisor.instance.plan import Resolved
from spec.api import StartRequest
from spec.errors import InvalidReference
from spec.reference import PathSource, parse_source


async def resolve(store: Store, request: StartRequest) -> Resolved:
    """Find the artifact, importing a directory or tar. Raises Invalid*, ArtifactNotFound, Corrupt*, Unsafe*."""
    return Resolved(request, await to_thread.run_sync(_artifact, store, request.manifest))


def _artifact(store: Store, text: str) -> Artifact:
    source = parse_source(text)
    if not isinstance(source, PathSource):
        return store.artifact(store.resolve(source))
    path = Path(source.path).expanduser()
    if not path.is_absolute():
        raise InvalidReference(
            f"{text!r} is a relative path, and the daemon has a working directory of its own",
            remedy="Give an absolute path.",
        )
    return store.artifact(import_artifact(store, path, None))
