"""Whether a snapshot of a clone is stored as a layer: the changed pages only, on the snapshot that it continues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from cache.ramsnap import Changes, read_chain
from cache.store import Store
from spec.digest import Digest
from spec.errors import OvmsError
from spec.ramsnap import MAX_LAYERS
from vmm.changed_pages import ChangedPages

_MOST_OF_IT: Final = 0.5
"""A layer of more than this share of its image saves little, and each one makes a load from the store longer."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layering:
    """What the blob of a layer is to hold, and all blobs below it, bottom first."""

    changes: Changes
    parents: tuple[Digest, ...]


def layering(store: Store, parent: Digest, pages: ChangedPages) -> Layering | None:
    """How to store the pages that a clone of ``parent`` changed; None if all of its RAM is to be stored. Blocks.

    All of it is also what remains if a blob below has left the store: the clone needs none of them, only its image.
    """
    try:
        chain = read_chain(parent, store.blob_path(parent), store.blob_path)
    except OvmsError as error:
        _log.warning("a snapshot becomes no layer", parent=parent, why=error.detail)
        return None
    changed_bytes = sum(extent.length for extent in pages.own)
    if len(chain.layers) >= MAX_LAYERS or changed_bytes > _MOST_OF_IT * chain.image_bytes:
        return None
    extents = [(extent.offset, extent.length) for extent in pages.own]
    return Layering(changes=Changes(parent=parent, extents=extents), parents=(*chain.parents, parent))
