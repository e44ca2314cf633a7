"""What in the local store refers to an artifact: snapshots of it, and signatures and the like beside it."""

from __future__ import annotations

from cache.index_file import ListedArtifact
from cache.referrer_kinds import SIMPLE_SIGNING
from cache.registry.referrers import Referrer, referrer_of, tagged_signatures
from cache.store import Store
from spec.digest import Digest
from spec.errors import OvmsError


def local_referrers(store: Store, subject: Digest) -> list[Referrer]:
    """Each once, in the order of the index; what can't be read is left out. Raises CorruptStore for the index."""
    listed = {each.digest: each for each in (*store.list(), *store.referrers(subject))}
    found = (_opened(store, each, subject) for each in listed.values() if each.digest != subject)
    return [each for each in found if each is not None]


def _opened(store: Store, listed: ListedArtifact, subject: Digest) -> Referrer | None:
    try:
        data = store.read_blob(listed.descriptor)
        referrer = referrer_of(data, listed.digest, subject)
        if referrer is None and listed.subject == subject:
            tagged = tagged_signatures(data)
            return tagged if tagged.artifact_type == SIMPLE_SIGNING else None
    except OvmsError:
        return None
    return referrer
