"""The gate in front of every start: does the operator's policy admit exactly this digest, under this name?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from typing import Final

from cache.store import Store
from cache.trust.decision import Decision
from cache.trust.local_signatures import local_signatures
from cache.trust.policy_file import FileIdentity, Policy, What, path_identity
from cache.trust.policy_source import PolicySource
from cache.trust.rulings import Signatures, rulings_of, unpinned_parts
from cache.trust.scopes import scopes_of
from cache.trust.sealed_records import MadeHere, PulledFrom, SealedRecords
from spec.digest import Digest
from spec.errors import InvalidReference
from spec.reference import PathSource, Reference, Source, parse_reference

_MAX_KNOWN: Final = 4096


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a decision was made from. Signatures are found by the index, and their blobs have their digests."""

    policy: Policy
    index: FileIdentity | None
    made_here: FileIdentity | None
    pulled_from: FileIdentity | None


class Gate:
    """Safe for threads; methods block on the disk, for microseconds where a decision is known and still holds."""

    def __init__(self, store: Store, policy: PolicySource) -> None:
        self.policy: Final = policy
        self._index = store.root / "index.json"
        self._known: dict[tuple[Digest, Source, bool], tuple[_Seen, Decision]] = {}
        self._store = store
        self._made_here = SealedRecords(store.trust_dir, "made-here", MadeHere, store.temp)
        self._pulled_from = SealedRecords(store.trust_dir, "pulled-from", PulledFrom, store.temp)

    def note_made_here(self, digest: Digest, base: Digest) -> None:
        """Remember that this store has made a snapshot. Raises CorruptStore, NoSpace."""
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._made_here.note(MadeHere(digest=digest, base=base, created=created))

    def note_pulled(self, digest: Digest, repository: str) -> None:
        """Remember where an artifact was pulled from by digest: it has no tag to tell. Raises as above."""
        known = self._pulled_from.find(digest)
        repositories = known.repositories if known else []
        if repository not in repositories:
            self._pulled_from.note(PulledFrom(digest=digest, repositories=[*repositories[-15:], repository]))

    def decide(
        self,
        digest: Digest,
        source: Source,
        *,
        ram_snapshot: bool,
        signatures: Signatures | None = None,
        unpinned: Sequence[str] = (),
    ) -> Decision:
        """What the policy says of an artifact.

        ``source``: what it was asked for by. By digest, all names that the store has for it must be admitted. From a
        path, or without a name, the default counts: the name in a manifest is what its maker likes it to be.
        ``ram_snapshot``: whether its RAM is going to be used.
        ``signatures``, and refs of its manifest that are ``unpinned``: those to go by instead of what is in the store,
        for an artifact that is not there yet.
        Raises InvalidPolicy, CorruptStore.
        """
        policy = self.policy.current()
        if policy is None:
            return Decision(digest=digest, policy=None)
        if signatures is not None:
            return self._decided(policy, digest, source, ram_snapshot, signatures, unpinned, fetched=True)
        # What all of it depends on; looked at before, so that a change meanwhile is seen the next time.
        records = (self._made_here.path(digest), self._pulled_from.path(digest))
        seen = _Seen(policy, path_identity(self._index), *map(path_identity, records))
        asked = (digest, source, ram_snapshot)
        known = self._known.get(asked)
        if known is None or known[0] != seen:
            kept = partial(local_signatures, self._store, digest)
            unpinned = self._store.artifact(digest).unpinned
            decision = self._decided(policy, digest, source, ram_snapshot, kept, unpinned, fetched=False)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[asked] = seen, decision
        return known[1]

    def _decided(
        self,
        policy: Policy,
        digest: Digest,
        source: Source,
        ram_snapshot: bool,
        signatures: Signatures,
        unpinned: Sequence[str],
        *,
        fetched: bool,
    ) -> Decision:
        names = self._names(digest, source, fetched=fetched)
        what: tuple[What, ...] = ("artifact", "ramSnapshot") if ram_snapshot else ("artifact",)
        made_here = policy.local_snapshots == "accept" and self._made_here.find(digest) is not None
        once = cache(signatures)
        rulings = [
            ruling
            for name in names
            for each in what
            for ruling in rulings_of(policy, each, name, digest, made_here=made_here, signatures=once)
        ]
        if unpinned:
            rulings.append(unpinned_parts(unpinned))
        return Decision(
            digest=digest,
            policy=policy.path,
            rulings=tuple(rulings),
            candidates={str(name): scopes_of(name) for name in names if name is not None},
            made_here=made_here,
        )

    def _names(self, digest: Digest, source: Source, *, fetched: bool) -> list[Reference | None]:
        """The names to ask for; None stands for no name, or one that is no reference.

        A digest may stand beside any name. It has that name if the store lists it so or has pulled it from there, or
        if it is just being ``fetched`` from there; else those that it has must be admitted besides.
        """
        if isinstance(source, PathSource):
            return [None]
        if isinstance(source, Reference) and (fetched or source.digest is None):
            return [source]
        listed = {each.name for each in self._store.list() if each.digest == digest}
        names = [_reference(name) for name in listed]
        pulled = self._pulled_from.find(digest)
        origins = pulled.repositories if pulled else []
        if isinstance(source, Reference) and source.name in [*(each.name for each in names if each), *origins]:
            return [source]
        if all(each is None for each in names) and origins:
            names = [_reference(each) for each in origins]
        asked = [source] if isinstance(source, Reference) else []
        return [*asked, *(sorted(names, key=str) or [None])]


def _reference(name: str | None) -> Reference | None:
    try:
        return parse_reference(name) if name else None
    except InvalidReference:
        return None
