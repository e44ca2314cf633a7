"""Finding and removing what nothing leads to. The caller holds the store's lock, but for :func:`destroy`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cache.blob_names import digest_in
from cache.claims import Claims
from cache.index_file import IndexFile
from cache.last_use import LastUse
from cache.lock import remove_if_free
from cache.pins import Pins
from cache.reachability import Needed, needed_by
from cache.temp_area import TempArea
from spec.digest import Digest, is_digest
from spec.errors import CorruptStore
from spec.fault_points import reach


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreParts:
    """Where a store keeps what can be removed, and what tells what is needed."""

    blobs: Path
    disks: Path
    partial: Path
    records: tuple[Path, ...]
    """Directories of small files about artifacts, called by their digests; they need not be there."""
    temp: TempArea
    index: IndexFile
    pins: Pins
    claims: Claims
    last_use: LastUse

    def held(self) -> set[Digest]:
        """What is in use, whether or not it is listed. Raises CorruptStore."""
        return self.pins.everywhere() | self.claims.everywhere()

    def roots(self) -> set[Digest]:
        """What is listed or in use. Raises CorruptStore."""
        return {each.digest for each in self.index.listed()} | self.held()


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that can go, or has gone."""

    what: str
    """A blob's digest, ``disks/<chain id>`` or ``partial/<hex>``."""
    size_bytes: int
    """On disk: what its removal frees."""
    path: Path = field(compare=False, repr=False)


def unneeded(parts: StoreParts, needed: Needed) -> list[Garbage]:
    """Blobs and extracted disks beyond those."""
    blobs = [
        Garbage(digest, _disk_bytes(path), path)
        for path in sorted(parts.blobs.iterdir())
        if is_digest(digest := f"sha256:{path.name}") and digest not in needed.blobs
    ]
    disks = [
        Garbage(f"disks/{path.name}", tree_bytes(path), path)
        for path in sorted(parts.disks.iterdir())
        if path.is_dir() and path.name not in needed.disks
    ]
    return blobs + disks


def bury(parts: StoreParts, garbage: Iterable[Garbage]) -> list[Path]:
    """Take garbage out of sight, each by one rename; returns what to :func:`destroy` when the lock is free again.

    What is only buried when this process dies goes with the other remains of dead writers.
    """
    graves = [parts.temp.bury(each.path) for each in garbage]
    there = {f"sha256:{path.name}" for path in parts.blobs.iterdir()}
    for directory in parts.records:
        for path in directory.glob("*.json"):
            if digest_in(path.stem) not in there:
                path.unlink(missing_ok=True)
    for path in parts.disks.glob("*.lock"):
        remove_if_free(path)
    parts.last_use.forget_all_but(there)
    return [grave for grave in graves if grave is not None]


def destroy(parts: StoreParts, graves: Iterable[Path]) -> None:
    """Free the space. Takes as long as the file system takes to free large files, so nobody should have to wait."""
    for grave in graves:
        parts.temp.destroy(grave)
        reach("prune.destroyed")


def is_referred_to(parts: StoreParts, digests: Iterable[Digest], roots: Iterable[Digest]) -> set[Digest]:
    """Those of the digests that a root leads to; all of them if that can't be told."""
    wanted = set(digests)
    try:
        return wanted & needed_by(parts.blobs, roots).blobs
    except CorruptStore:
        return wanted


def tree_bytes(directory: Path) -> int:
    """What a directory's files take on disk; those that vanish meanwhile, nothing."""
    return sum(_disk_bytes(each) for each in directory.rglob("*") if not each.is_dir())


def _disk_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
