"""Attaching the signatures that a store keeps to an artifact in a registry, as Cosign attaches them."""

from __future__ import annotations

from collections.abc import Iterable

from cache.registry.client import Repository
from cache.registry.manifest_upload import push_small
from cache.registry.referrer_index import find_manifest
from cache.trust.signature_manifest import (
    SignatureManifest,
    decode_signature_manifest,
    format_of,
    merged,
    signature_tag,
)
from spec.digest import Digest
from spec.errors import ArtifactNotFound, InvalidManifest


async def push_signatures(repository: Repository, subject: Digest, signatures: Iterable[SignatureManifest]) -> int:
    """Attach signatures of an artifact; those that are attached already stay. How many manifests were written.

    v3 bundles become referrers; v2 signatures join those at the tag. One after the other: a registry without the
    referrers API has one index of them. Raises RegistryError and its kinds, InvalidManifest and InvalidSignature if
    something else is at the tag.
    """
    written = 0
    for each in signatures:
        if format_of(decode_signature_manifest(each.data)) == "v2":
            written += await _join(repository, subject, each)
        elif not await _is_there(repository, each.digest):
            await _push(repository, each, None)
            written += 1
    return written


async def _join(repository: Repository, subject: Digest, signatures: SignatureManifest) -> bool:
    tag = signature_tag(subject)
    present = await _tagged(repository, tag)
    joined = signatures if present is None else merged(present, signatures)
    if joined is present:
        return False
    await _push(repository, joined, tag)
    return True


async def _tagged(repository: Repository, tag: str) -> SignatureManifest | None:
    found = await find_manifest(repository, tag)
    if found is None:
        return None
    manifest = decode_signature_manifest(found.data)  # bounds what is read next
    if format_of(manifest) != "v2":
        raise InvalidManifest(f"what {repository.name}:{tag} names holds no signatures of Cosign v2", path="$")
    parts = (manifest.config, *manifest.layers)
    return SignatureManifest(found.data, {each.content_digest: await repository.read_blob(each) for each in parts})


async def _is_there(repository: Repository, digest: Digest) -> bool:
    try:
        await repository.manifest(digest=digest)
    except ArtifactNotFound:
        return False
    return True


async def _push(repository: Repository, signatures: SignatureManifest, tag: str | None) -> None:
    manifest = decode_signature_manifest(signatures.data)
    parts = {each.content_digest: each for each in (manifest.config, *manifest.layers)}
    blobs = [(each, signatures.blobs[digest]) for digest, each in parts.items()]
    await push_small(repository, signatures.data, blobs, tag=tag)
