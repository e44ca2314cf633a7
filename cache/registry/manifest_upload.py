"""Pushing manifests: by tag or digest, always after their blobs, and made known to those who look for referrers."""

from __future__ import annotations

from collections.abc import Sequence

from cache.registry.blob_upload import push_blob
from cache.registry.client import Repository
from cache.registry.referrer_index import add_to_fallback, has_referrers_api
from cache.registry.replies import refusal
from cache.registry.session import PUSH
from cache.registry.upload import check_digest_header
from spec import media_types
from spec.digest import Digest, digest_of
from spec.oci import Descriptor, ImageManifest, decode


async def put_manifest(
    repository: Repository, data: bytes, *, tag: str | None = None, media_type: str = media_types.OCI_MANIFEST
) -> bool:
    """Store a manifest or index under its digest, or under a tag; whether the registry took note of its ``subject``.

    Raises RegistryError and its kinds, DigestMismatch.
    """
    digest = digest_of(data)
    url = repository.url("manifests", tag or digest)
    headers = {"Content-Type": media_type}
    async with repository.request("PUT", url, actions=PUSH, headers=headers, data=data) as response:
        if response.status != 201:
            raise await refusal(response, f"manifest {repository.name}{f':{tag}' if tag else f'@{digest}'}")
        check_digest_header(response, digest)
        return "OCI-Subject" in response.headers


async def push_manifest(repository: Repository, data: bytes, *, tag: str | None = None) -> Digest:
    """Store an image manifest whose blobs are there already; with a ``subject`` it can be found as a referrer of it.

    A registry without the referrers API gets an index under the tag that the specification names for it.
    Raises InvalidManifest, RegistryError and its kinds, DigestMismatch.
    """
    manifest = decode(data, ImageManifest, "the manifest to push")
    noted = await put_manifest(repository, data, tag=tag)
    if manifest.subject is not None and not noted:
        subject = manifest.subject.content_digest
        if not await has_referrers_api(repository, subject):
            await add_to_fallback(repository, subject, _listed(data, manifest), put_manifest)
    return digest_of(data)


async def push_small(
    repository: Repository, data: bytes, blobs: Sequence[tuple[Descriptor, bytes]], *, tag: str | None = None
) -> Digest:
    """Store a manifest together with blobs that are in memory, such as a signature. Raises what the two do."""
    for descriptor, content in blobs:
        await push_blob(repository, descriptor, content)
    return await push_manifest(repository, data, tag=tag)


def _listed(data: bytes, manifest: ImageManifest) -> Descriptor:
    """As an index of referrers has it: with the manifest's type and annotations."""
    return Descriptor(
        media_types.OCI_MANIFEST,
        digest_of(data),
        len(data),
        annotations=manifest.annotations,
        artifact_type=manifest.artifact_type or manifest.config.media_type,
    )
