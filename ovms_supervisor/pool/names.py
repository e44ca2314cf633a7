"""What a reference means, without asking the store again as long as its index is the same file."""

from __future__ import annotations

import os
from pathlib import Path

from anyio.to_thread import run_sync

from cache.store import Store
from spec.digest import Digest
from spec.errors import InvalidReference
from spec.reference import DigestSource, PathSource, Reference, parse_source

_MAX_KNOWN = 4096

Signature = tuple[int, int, int]


class Names:
    """Remembers resolved references; whoever changes the index replaces the file, so that it is another one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._index = store.root / "index.json"
        self._signature: Signature | None = None
        self._known: dict[str, Digest] = {}

    def known(self, text: str) -> Digest | None:
        """The digest that a reference was resolved to, if that still holds; looks at one inode."""
        return self._known.get(text) if self._signature == _signature(self._index) else None

    def changed(self) -> bool:
        """Whether the index is another one than that of the latest look."""
        return self._signature != _signature(self._index)

    async def digest(self, text: str) -> Digest:
        """Resolve a reference. Raises InvalidReference, also for a path, and ArtifactNotFound."""
        found = self.known(text)
        if found is None:
            signature = _signature(self._index)  # before: if the index changes meanwhile, we shall look again
            found = await run_sync(self._store.resolve, listed_source(text))
            if signature != self._signature or len(self._known) >= _MAX_KNOWN:
                self._signature = signature
                self._known.clear()
            self._known[text] = found
        return found


def listed_source(text: str) -> Reference | DigestSource:
    """A reference to an artifact of the store. Raises InvalidReference."""
    source = parse_source(text)
    if isinstance(source, PathSource):
        raise InvalidReference(
            f"{text!r} is a path; clones can be parked of what is in the store",
            remedy="Import it first (ovm import), and name it by its reference.",
        )
    return source


def pinned(text: str, digest: Digest) -> str:
    """A reference to just that artifact, which keeps the name: the policy goes by it."""
    source = listed_source(text)
    return str(source.with_digest(digest)) if isinstance(source, Reference) else digest


def _signature(path: Path) -> Signature | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - microseconds, on the loop
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
