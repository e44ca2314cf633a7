"""Collecting garbage: what goes, in which order, and what never does.

Never goes what a tag, a machine (running or stopped), a persistent disk, or an unfinished pack, pull or snapshot leads
to, nor a signature or other referrer of what stays. What may go:

- artifacts without a name, with their blobs;
- blobs that no artifact leads to, and partial downloads, if they are a day old: until then a pull may go on from them;
- extracted disks that no machine uses: they are made again from their layers.

Order of removal: the list first, durably, then each file by one rename. Whoever dies in between leaves garbage, never
an artifact that lacks something.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache.lock import hold
from cache.reachability import Needed, needed_by, subject_of
from cache.store import Store
from cache.unreferenced import Garbage, StoreParts, bury, destroy, unneeded
from spec.digest import Digest
from spec.errors import CorruptStore, NoSpace
from spec.fault_points import reach

GRACE_S: Final = 24 * 3600.0
"""How long what an interrupted pull has brought waits for the next one."""


def prune(store: Store, *, everything: bool = False, dry_run: bool = False) -> list[Garbage]:
    """Remove what nobody refers to; ``everything`` also what could be fetched or made again, however young.

    With ``dry_run`` only tells what would go. Raises CorruptStore, having removed nothing, if a manifest that something
    refers to is damaged; NoSpace, PermissionMissing.
    """
    with store.collecting() as parts:
        inventory = _Inventory(parts)
        dropped = inventory.nameless
        disks = inventory.needed(inventory.held) if everything else None
        collection = inventory.collection(dropped, disks, grace_s=0 if everything else GRACE_S)
        graves = [] if dry_run else collection.bury(parts)
    destroy(parts, graves)
    return collection.garbage


def shrink(store: Store, limit_bytes: int) -> list[Garbage]:
    """Remove garbage until the store takes no more than that, the least recently used first; nothing if it fits.

    What may not go stays, even if the store then takes more. Raises as :func:`prune`.
    """
    with store.collecting() as parts:
        excess = store.size_bytes() - limit_bytes
        if excess <= 0:
            return []
        inventory = _Inventory(parts)
        collection = inventory.collection([], None, grace_s=GRACE_S)
        dropped: list[Digest] = []
        disks = inventory.needed([*inventory.held, *inventory.artifacts])
        waiting = sorted(inventory.artifacts, key=parts.last_use.of)
        while waiting and sum(each.size_bytes for each in collection.garbage) < excess:
            oldest = waiting.pop(0)
            if oldest in inventory.nameless:
                dropped.append(oldest)
            disks = inventory.needed([*inventory.held, *waiting])
            collection = inventory.collection(dropped, disks, grace_s=GRACE_S)
        graves = collection.bury(parts)
    destroy(parts, graves)
    return collection.garbage


def free(store: Store, digests: Iterable[Digest]) -> list[Garbage]:
    """Remove what artifacts that have just been taken off the list needed, and nobody else does. Raises as prune."""
    with store.collecting() as parts:
        inventory = _Inventory(parts)
        gone = _needed(parts, digests)
        orphaned = inventory.referrers_of(gone)
        gone.update(inventory.needed(orphaned))
        stays = inventory.needed([*inventory.held, *inventory.artifacts, *(inventory.subjects.keys() - orphaned)])
        names = _names(gone)
        garbage = [each for each in unneeded(parts, stays) if each.what in names]
        collection = _Collection([each for each in orphaned if each not in stays.blobs], garbage)
        graves = collection.bury(parts)
    destroy(parts, graves)
    return collection.garbage


@dataclass(slots=True)
class _Collection:
    unlist: list[Digest]
    garbage: list[Garbage]

    def bury(self, parts: StoreParts) -> list[Path]:
        """Take it all out of sight. On a full disk what is on no list goes first: a shorter list, too, needs room."""
        try:
            self._unlist(parts)
        except NoSpace:
            lost = _names(_needed(parts, self.unlist))
            spare = [each for each in self.garbage if each.what not in lost]
            destroy(parts, bury(parts, spare))
            self._unlist(parts)
        reach("prune.unlisted")
        graves = bury(parts, self.garbage)
        reach("prune.buried")
        return graves

    def _unlist(self, parts: StoreParts) -> None:
        for digest in self.unlist:
            parts.index.remove(digest)


class _Inventory:
    """What is listed and what leads to it, at one moment: while the store is locked."""

    def __init__(self, parts: StoreParts) -> None:
        self._parts = parts
        self.held = parts.held()
        self.subjects: dict[Digest, Digest] = {}
        """Referrers, with what they are about."""
        named: set[Digest] = set()
        listed: list[Digest] = []
        for each in parts.index.listed():
            subject = subject_of(parts.blobs, each)
            if subject is not None:
                self.subjects[each.digest] = subject
                continue
            listed.append(each.digest)
            if each.name is not None:
                named.add(each.digest)
        self.artifacts = list(dict.fromkeys(listed))
        self._of = {each: needed_by(parts.blobs, [each]) for each in {*listed, *self.subjects, *self.held}}
        in_use = self.needed(self.held).blobs
        self.nameless = [each for each in self.artifacts if each not in named and each not in in_use]

    def needed(self, roots: Iterable[Digest]) -> Needed:
        """What they lead to, with the referrers of all that, and their referrers."""
        needed = Needed()
        needed.update(*(self._of[each] for each in roots))
        waiting = dict(self.subjects)
        while found := [each for each, subject in waiting.items() if subject in needed.blobs]:
            for each in found:
                needed.update(self._of[each])
                del waiting[each]
        return needed

    def referrers_of(self, needed: Needed) -> set[Digest]:
        """What is about any of the blobs, and what is about that."""
        found: set[Digest] = set()
        while more := {
            each
            for each, subject in self.subjects.items()
            if each not in found and (subject in needed.blobs or subject in found)
        }:
            found |= more
        return found

    def collection(self, dropped: Iterable[Digest], disks: Needed | None, *, grace_s: float) -> _Collection:
        """What goes with these artifacts; of the extracted disks only those among ``disks`` stay, if they are given."""
        lost = set(dropped)
        needed = self.needed([*self.held, *(each for each in self.artifacts if each not in lost)])
        if disks is not None:
            needed.disks &= disks.disks
        orphans = [each for each in self.subjects if each not in needed.blobs]
        known = self.needed([*self.artifacts, *self.subjects, *self.held])
        partial = _partial(self._parts, grace_s)
        if not _may_go_on(self._parts, grace_s):
            grace_s = 0
        garbage = [
            each
            for each in unneeded(self._parts, needed)
            if each.what in known.blobs or each.what.startswith("disks/") or _age_s(each.path) >= grace_s
        ]
        return _Collection([*lost, *orphans], [*garbage, *partial])


def _needed(parts: StoreParts, digests: Iterable[Digest]) -> Needed:
    """What artifacts need that are to go. Of a damaged one nobody knows: that is found later, as led to by nothing."""
    needed = Needed()
    for digest in digests:
        try:
            needed.update(needed_by(parts.blobs, [digest]))
        except CorruptStore:
            needed.blobs.add(digest)
    return needed


def _names(needed: Needed) -> set[str]:
    return {*needed.blobs, *(f"disks/{name}" for name in needed.disks)}


def _partial(parts: StoreParts, grace_s: float) -> list[Garbage]:
    """Partial downloads that nobody works on and nobody has worked on for that long."""
    found = []
    for path in sorted(parts.partial.iterdir()):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if hold(fd) and _age_s(path) >= grace_s:
                found.append(Garbage(f"partial/{path.name}", os.fstat(fd).st_blocks * 512, path))
        finally:
            os.close(fd)
    return found


def _may_go_on(parts: StoreParts, grace_s: float) -> bool:
    """Whether a pull was interrupted lately: then blobs that nothing leads to may be what it has brought."""
    return any(_age_s(path) < grace_s for path in parts.partial.iterdir())


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0
