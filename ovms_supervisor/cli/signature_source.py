"""Where ``ovm sign`` and ``ovm verify`` find signatures of an artifact, and attach them: the store, or its registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli.invocation import Invocation, run_async
from spec.errors import ArtifactNotFound

if TYPE_CHECKING:
    from cache.trust.signature_manifest import SignatureManifest
    from ovms_supervisor.config import Settings
    from spec.digest import Digest
    from spec.reference import DigestSource, Reference


def in_registry(artifact: Reference | DigestSource, option: str) -> Reference:
    """The reference, if it names a registry; else wrong usage of ``option``."""
    from spec.reference import Reference

    if isinstance(artifact, Reference) and artifact.registry is not None:
        return artifact
    raise click.UsageError(f"{option} needs a reference with a registry, which {artifact} is not")


def find_signatures(
    invocation: Invocation, artifact: Reference | DigestSource, *, remote: bool, plain_http: bool
) -> tuple[Digest, list[SignatureManifest]]:
    """The digest that is meant, and its signatures.

    Those of the store; with ``remote``, or if the artifact is not in the store, those of its registry. Raises
    ArtifactNotFound, RegistryError and its kinds.
    """
    from cache.trust.local_signatures import local_signatures
    from spec.reference import Reference

    if remote:
        return _fetch(invocation.settings, in_registry(artifact, "--remote"), plain_http)
    store = invocation.store()
    try:
        digest = store.artifact(store.resolve(artifact)).digest
    except ArtifactNotFound:
        if not isinstance(artifact, Reference) or artifact.registry is None:
            raise
        return _fetch(invocation.settings, artifact, plain_http)
    return digest, local_signatures(store, digest)


def _fetch(settings: Settings, reference: Reference, plain_http: bool) -> tuple[Digest, list[SignatureManifest]]:
    from cache.registry.access import open_registries
    from cache.trust.remote_signatures import remote_signatures
    from ovms_supervisor.registries import access_of

    async def fetch() -> tuple[Digest, list[SignatureManifest]]:
        async with open_registries(access_of(settings, plain_http=_hosts(reference, plain_http))) as registries:
            repository = registries.repository(reference)
            digest = (await repository.manifest(reference.tag, reference.digest)).digest
            return digest, await remote_signatures(repository, digest)

    return run_async(fetch)


def look_into_registry(
    settings: Settings, reference: Reference, *, plain_http: bool
) -> tuple[Digest, bool, list[SignatureManifest]]:
    """Of an OVMS artifact in its registry: digest, whether it has a RAM snapshot, and signatures.

    Raises ArtifactNotFound, UnsupportedManifest (also for an index: whose entries are signed), RegistryError.
    """
    from cache.artifact import decode_oci_manifest
    from cache.registry.access import open_registries
    from cache.trust.remote_signatures import remote_signatures
    from ovms_supervisor.registries import access_of
    from spec import media_types

    async def look() -> tuple[Digest, bool, list[SignatureManifest]]:
        async with open_registries(access_of(settings, plain_http=_hosts(reference, plain_http))) as registries:
            repository = registries.repository(reference)
            found = await repository.manifest(reference.tag, reference.digest)
            layers = decode_oci_manifest(found.data).layers
            has_ram = any(each.media_type == media_types.RAMSNAP for each in layers)
            return found.digest, has_ram, await remote_signatures(repository, found.digest)

    return run_async(look)


def attach(
    settings: Settings, reference: Reference, digest: Digest, signatures: list[SignatureManifest], *, plain_http: bool
) -> int:
    """Attach signatures to an artifact in its registry; how many manifests it did not have.

    Raises ArtifactNotFound if the registry has no such artifact: nobody would find them. RegistryError and its kinds.
    """
    from cache.registry.access import open_registries
    from cache.trust.push_signatures import push_signatures
    from ovms_supervisor.registries import access_of

    async def push() -> int:
        async with open_registries(access_of(settings, plain_http=_hosts(reference, plain_http))) as registries:
            repository = registries.repository(reference)
            await repository.manifest(digest=digest)
            return await push_signatures(repository, digest, signatures)

    return run_async(push)


def _hosts(reference: Reference, plain_http: bool) -> tuple[str, ...]:
    return (reference.registry or "",) if plain_http else ()
