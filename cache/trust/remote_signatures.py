"""Signatures of an artifact in its repository: those at Cosign's tag and those that refer to it, bounded."""

from __future__ import annotations

from typing import Final

from cache.registry.client import Repository
from cache.registry.referrers import list_referrers, signatures_by_tag
from cache.registry.side_by_side import side_by_side
from cache.trust.signature_manifest import (
    MAX_SIGNATURE_BLOB_BYTES,
    MAX_SIGNATURES,
    SignatureManifest,
    decode_signature_manifest,
    format_of,
)
from spec import media_types
from spec.digest import Digest
from spec.errors import Corrupt, InvalidInput, NotFound
from spec.oci import Descriptor

_SIDE_BY_SIDE: Final = 4


async def remote_signatures(repository: Repository, subject: Digest) -> list[SignatureManifest]:
    """What can be read of the signatures of an artifact; of what can't, nothing can be concluded.

    At most MAX_SIGNATURES at the tag and as many that refer to it, each of bounded size. Raises RegistryError and its
    kinds, also for more referrers than anybody can want to look at.
    """
    tagged = await _by_tag(repository, subject)
    found = [tagged] if tagged is not None else []
    # All of one manifest, or none of it: what is kept has to be whole.
    manifests = await side_by_side(lambda data: _whole(repository, data), found, _SIDE_BY_SIDE)
    referring = await _referring(repository, subject)
    manifests += await side_by_side(lambda data: _whole(repository, data), referring, _SIDE_BY_SIDE)
    return [each for each in manifests if each is not None]


async def _by_tag(repository: Repository, subject: Digest) -> bytes | None:
    try:
        tagged = await signatures_by_tag(repository, subject)
    except (InvalidInput, Corrupt):
        return None
    return tagged.data if tagged is not None else None


async def _referring(repository: Repository, subject: Digest) -> list[bytes]:
    try:
        referrers = await list_referrers(repository, subject, media_types.SIGSTORE_BUNDLE)
    except (InvalidInput, Corrupt):
        return []
    return [each.data for each in referrers[:MAX_SIGNATURES]]


async def _whole(repository: Repository, data: bytes) -> SignatureManifest | None:
    async def blob(descriptor: Descriptor) -> tuple[Digest, bytes]:
        content = await repository.read_blob(descriptor, max_bytes=MAX_SIGNATURE_BLOB_BYTES)
        return descriptor.content_digest, content

    try:
        manifest = decode_signature_manifest(data)
        if format_of(manifest) is None:
            return None
        parts = {each.digest: each for each in (manifest.config, *manifest.layers)}
        return SignatureManifest(data, dict(await side_by_side(blob, parts.values(), _SIDE_BY_SIDE)))
    except (InvalidInput, Corrupt, NotFound):
        return None
