"""What refers to an artifact, here and in a registry, for ``ovm inspect --referrers``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ovms_supervisor.cli import output
from ovms_supervisor.cli.invocation import Invocation, run_async
from spec.errors import ArtifactNotFound
from spec.sizes import format_size

if TYPE_CHECKING:
    from cache.registry.referrers import Referrer
    from ovms_supervisor.config import Settings
    from spec.digest import Digest
    from spec.reference import DigestSource, Reference


def show_referrers(invocation: Invocation, source: Reference | DigestSource) -> None:
    """Print those of the local store, and those of the registry that the reference names.

    Raises ArtifactNotFound if it is in neither, RegistryError and its kinds.
    """
    rows: list[dict[str, Any]] = []
    digest = here = _found_here(invocation, source, rows)
    registry = getattr(source, "registry", None)
    if registry is not None:
        digest, found = run_async(lambda: _ask(invocation.settings, source, here))  # type: ignore[arg-type]
        rows += _rows(registry, found)
        if here is not None and here != digest:
            output.message(f"here the name is that of {here}, in the registry of {digest}")
    if digest is None:
        raise ArtifactNotFound(f"no artifact {source} in the local store", reference=str(source))
    if invocation.json:
        output.as_json({"digest": digest, "referrers": rows})
        return
    output.table(
        ("WHERE", "KIND", "TYPE", "DIGEST", "SIZE"),
        [
            (each["where"], each["kind"], each["type"] or "-", each["digest"], format_size(each["size_bytes"]))
            for each in rows
        ],
    )


def _found_here(invocation: Invocation, source: Reference | DigestSource, rows: list[dict[str, Any]]) -> Digest | None:
    from cache.local_referrers import local_referrers

    store = invocation.store()
    try:
        digest = store.resolve(source)
    except ArtifactNotFound:
        return None
    rows += _rows("local", local_referrers(store, digest))
    return digest


async def _ask(settings: Settings, reference: Reference, here: Digest | None) -> tuple[Digest, list[Referrer]]:
    """The digest that the registry has under the name, and what refers to that there.

    What it does not have is no error if it is here: then it is asked about the digest that is.
    """
    from cache.registry.access import open_registries
    from cache.registry.referrers import list_referrers, signatures_by_tag
    from ovms_supervisor.registries import access_of

    async with open_registries(access_of(settings)) as registries:
        repository = registries.repository(reference)
        try:
            digest = (await repository.manifest(reference.tag, reference.digest)).digest
        except ArtifactNotFound:
            if here is None:
                raise
            digest = here
        listed, tagged = await asyncio.gather(list_referrers(repository, digest), signatures_by_tag(repository, digest))
    return digest, [*listed, tagged] if tagged else listed


def _rows(where: str, referrers: list[Referrer]) -> Iterator[dict[str, Any]]:
    from cache.referrer_kinds import kind_of

    for each in referrers:
        yield {
            "where": where,
            "kind": kind_of(each.artifact_type, each.annotations),
            "type": each.artifact_type,
            "digest": each.digest,
            "size_bytes": each.total_bytes,
            "annotations": each.annotations,
        }
