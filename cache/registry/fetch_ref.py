"""One blob that the user names by URL or registry reference, for who packs an artifact of it."""

from __future__ import annotations

from collections.abc import Callable

from cache.artifact import Part
from cache.registry.access import Registries
from cache.registry.download import Download, Downloads
from cache.registry.external import ExternalRefs
from cache.store import Store
from spec.digest import Digest


async def fetch_ref(
    store: Store,
    registries: Registries,
    part: Part,
    ref: str,
    how: Downloads,
    added: Callable[[Digest], object],
) -> Digest:
    """Have the blob in the store; ``added`` is told when it has been pinned as fresh (see ``Store.adding``).

    Raises what :meth:`ExternalRefs.find` and :meth:`Download.run` raise.
    """
    external = await ExternalRefs(registries).find(part, ref)
    await Download(store, external.source, external.blob, how, added).run()
    return external.blob.content_digest
