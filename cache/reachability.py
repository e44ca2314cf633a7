"""What a manifest or blob of the store leads to: its blobs, extracted disks, and whether it is about another one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.artifact import manifest_layer
from cache.chain_id import FLAT_SUFFIX, chain_ids
from cache.index_file import ListedArtifact
from spec import media_types
from spec.decoding import NotDecodable, from_builtins, from_json
from spec.digest import Digest, digest_of, hex_of, is_digest
from spec.errors import CorruptStore, OvmsError
from spec.manifest import decode_manifest
from spec.oci import MAX_MANIFEST_BYTES, ImageManifest
from spec.reference import parse_blob_ref


@dataclass(slots=True)
class Needed:
    """Blobs, and names of extracted disks."""

    blobs: set[Digest] = field(default_factory=set)
    disks: set[str] = field(default_factory=set)

    def update(self, *others: Needed) -> None:
        """Add what the others have."""
        for each in others:
            self.blobs |= each.blobs
            self.disks |= each.disks


def needed_by(blobs: Path, roots: Iterable[Digest]) -> Needed:
    """All that the roots lead to, the roots included, whether it is here or not.

    Raises CorruptStore if a root that is here can't be followed.
    """
    needed = Needed()
    pending = [*roots]
    while pending:
        digest = pending.pop()
        if digest in needed.blobs:
            continue
        needed.blobs.add(digest)
        document = _document(blobs / hex_of(digest), digest)
        needed.blobs.update(_digests_in(document, "config", "layers"))
        pending += _digests_in(document, "manifests")
        needed.disks.update(_disk_chain(blobs, document))
    return needed


def subject_of(blobs: Path, listed: ListedArtifact) -> Digest | None:
    """What a listed manifest is about, if it is a signature or the like; None for what is there for its own sake.

    An OVMS artifact is, though its ``subject`` tells which one it was made from. Raises CorruptStore.
    """
    document = _document(blobs / hex_of(listed.digest), listed.digest)
    if document.get("artifactType") == media_types.MANIFEST:
        return None
    return listed.subject or next(_digests_in(document, "subject"), None)


def _document(path: Path, digest: Digest) -> dict[str, Any]:
    """The blob as a JSON object; empty if it is none, or not here yet."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_MANIFEST_BYTES else b""
    except FileNotFoundError:
        return {}
    if data and digest_of(data) != digest:
        raise CorruptStore(
            f"{digest} is damaged: if it is a manifest, nobody knows which blobs it needs",
            remedy="Fetch, import or pack that artifact again, or remove it from the store by its digest.",
            digest=digest,
        )
    try:
        return from_json(data, dict[str, Any])
    except NotDecodable:
        return {}


def _digests_in(document: dict[str, Any], *fields: str) -> Iterator[Digest]:
    for name in fields:
        value = document.get(name)
        for each in value if isinstance(value, list) else [value]:
            digest = each.get("digest") if isinstance(each, dict) else None
            if isinstance(digest, str) and is_digest(digest):
                yield Digest(digest)


def _disk_chain(blobs: Path, document: dict[str, Any]) -> list[str]:
    """Names of the extracted disks that an OVMS artifact uses; none if it can't be read: they can be made again."""
    try:
        oci = from_builtins(document, ImageManifest)
        disks = decode_manifest((blobs / hex_of(manifest_layer(oci).content_digest)).read_bytes()).disk_layers
    except (NotDecodable, OvmsError, OSError):
        return []
    ids = chain_ids(digest for each in disks if (digest := parse_blob_ref(each.ref).digest))
    return [*ids, *(f"{each}{FLAT_SUFFIX}" for each in ids[-1:])]
