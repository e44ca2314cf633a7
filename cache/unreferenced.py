"""Finding and removing what no artifact needs. The caller holds the store's lock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.artifact import manifest_layer
from cache.blob_names import digest_in
from cache.chain_id import chain_ids
from cache.lock import remove_if_free
from cache.temp_area import TempArea
from spec.decoding import NotDecodable, from_builtins, from_json
from spec.digest import Digest, digest_of, hex_of, is_digest
from spec.errors import CorruptStore, OvmsError
from spec.manifest import decode_manifest
from spec.oci import MAX_MANIFEST_BYTES, ImageManifest
from spec.reference import parse_blob_ref


@dataclass(frozen=True, slots=True)
class StoreParts:
    """Where a store keeps what can be removed."""

    blobs: Path
    disks: Path
    provenance: Path
    temp: TempArea


@dataclass(frozen=True, slots=True)
class Removed:
    """A blob (its digest) or an extracted disk (``disks/<chain id>``) that was removed, and its size on disk."""

    what: str
    size_bytes: int


def remove_unreferenced(parts: StoreParts, roots: Iterable[Digest]) -> list[Removed]:
    """Remove what none of the roots (manifests or single blobs) leads to.

    Raises CorruptStore, having removed nothing, if a root that is there can't be followed.
    """
    needed, disks = _reachable(parts.blobs, roots)
    removed = []
    for path in sorted(parts.blobs.iterdir()):
        digest = f"sha256:{path.name}"
        if is_digest(digest) and digest not in needed:
            removed.append(Removed(digest, _disk_bytes(path)))
            path.unlink()
    for path in sorted(parts.disks.iterdir()):
        if path.is_dir() and path.name not in disks:
            removed.append(Removed(f"disks/{path.name}", sum(_disk_bytes(each) for each in path.iterdir())))
            parts.temp.discard_directory(path)
        elif path.suffix == ".lock":
            remove_if_free(path)
    for path in parts.provenance.iterdir():
        if digest_in(path.stem) not in needed:
            path.unlink()
    return removed


def is_referred_to(parts: StoreParts, digests: Iterable[Digest], roots: Iterable[Digest]) -> set[Digest]:
    """Those of the digests that a root leads to; all of them if that can't be told."""
    wanted = set(digests)
    try:
        return wanted & _reachable(parts.blobs, roots)[0]
    except CorruptStore:
        return wanted


def _reachable(blobs: Path, roots: Iterable[Digest]) -> tuple[set[Digest], set[str]]:
    """Blobs and names of extracted disks that the roots lead to, the roots included."""
    needed: set[Digest] = set()
    disks: set[str] = set()
    pending = [*roots]
    while pending:
        digest = pending.pop()
        if digest in needed:
            continue
        needed.add(digest)
        document = _document(blobs / hex_of(digest), digest)
        needed.update(_digests_in(document, "config", "layers"))
        pending += _digests_in(document, "manifests")
        disks.update(_disk_chain(blobs, document))
    return needed, disks


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


def _digests_in(document: dict[str, Any], *fields: str) -> list[Digest]:
    found = []
    for field in fields:
        value = document.get(field)
        for each in value if isinstance(value, list) else [value]:
            digest = each.get("digest") if isinstance(each, dict) else None
            if isinstance(digest, str) and is_digest(digest):
                found.append(Digest(digest))
    return found


def _disk_chain(blobs: Path, document: dict[str, Any]) -> list[str]:
    """Names of the extracted disks that an OVMS artifact uses; none if it can't be read: they can be made again."""
    try:
        oci = from_builtins(document, ImageManifest)
        disks = decode_manifest((blobs / hex_of(manifest_layer(oci).content_digest)).read_bytes()).disk_layers
    except (NotDecodable, OvmsError, OSError):
        return []
    return chain_ids(digest for each in disks if (digest := parse_blob_ref(each.ref).digest))


def _disk_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512
