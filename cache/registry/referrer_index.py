"""Who refers to a manifest, as the registry lists it: by the referrers API, or by an index under a tag.

distribution-spec v1.1 §Listing Referrers and §Unavailable Referrers API. What an index says of a manifest, besides its
digest, is not to be relied upon: see ``cache.registry.referrers``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec
from yarl import URL

from cache.registry.client import FetchedManifest, Repository
from cache.registry.origin import check_target
from cache.registry.replies import read_bounded, refusal
from cache.registry.session import PULL, PUSH
from spec import media_types
from spec.decoding import from_json
from spec.digest import Digest, hex_of
from spec.errors import ArtifactNotFound, Conflict, RegistryGarbage
from spec.oci import MAX_MANIFEST_BYTES, Descriptor, ImageIndex, decode

MAX_REFERRERS: Final = 256
_MAX_PAGES: Final = 32
_NO_API: Final = frozenset({400, 404, 405, 501})
"""404 by the specification; the others are what servers say that never heard of such an endpoint."""
_NEXT: Final = re.compile(r"""\s*<([^<>]*)>\s*;(?:[^,]*;)?\s*rel\s*=\s*"?next"?\s*(?:[;,].*)?""", re.DOTALL)
_TRIES: Final = 4

_locks: WeakValueDictionary[tuple[URL, str, Digest], asyncio.Lock] = WeakValueDictionary()


def fallback_tag(subject: Digest) -> str:
    """The tag of the index for registries without the API."""
    return f"sha256-{hex_of(subject)}"


async def listed_referrers(
    repository: Repository, subject: Digest, artifact_type: str | None = None
) -> list[Descriptor]:
    """What is listed as referring to ``subject``; the registry may ignore the filter.

    Raises RegistryError and its kinds, RegistryGarbage also for more than MAX_REFERRERS, InvalidManifest.
    """
    found = await _from_api(repository, subject, artifact_type)
    if found is None:
        tagged = await find_manifest(repository, fallback_tag(subject))
        found = decode(tagged.data, ImageIndex, "the index of referrers").manifests if tagged else []
    unique = {each.digest: each for each in found}
    if len(unique) > MAX_REFERRERS:
        raise _too_many(repository, subject)
    return list(unique.values())


async def find_manifest(repository: Repository, tag: str) -> FetchedManifest | None:
    """The manifest or index that has the tag; None: nothing has. Raises RegistryError and its kinds."""
    try:
        return await repository.manifest(tag)
    except ArtifactNotFound:
        return None


async def has_referrers_api(repository: Repository, subject: Digest) -> bool:
    """Whether the registry lists referrers by itself. Raises RegistryError and its kinds."""
    return await _page(repository, _api(repository, subject, None), PUSH) is not None


async def add_to_fallback(
    repository: Repository,
    subject: Digest,
    referrer: Descriptor,
    put: Callable[..., Awaitable[bool]],
) -> None:
    """List a referrer in the index under the fallback tag, keeping what others have written there.

    The registry has no way to do this in one step. It is looked at again afterwards, and done again if somebody
    else's change has swallowed ours. Raises Conflict, RegistryError and its kinds, InvalidManifest.
    """
    tag = fallback_tag(subject)
    lock = _locks.setdefault((repository.origin, repository.name, subject), asyncio.Lock())
    async with lock:
        for _ in range(_TRIES):
            tagged = await find_manifest(repository, tag)
            index = _index(tagged)
            if any(each["digest"] == referrer.digest for each in index["manifests"]):
                return
            index["manifests"].append(msgspec.to_builtins(referrer))
            data = msgspec.json.encode(index)
            if len(data) > MAX_MANIFEST_BYTES:
                raise _too_many(repository, subject)
            await put(repository, data, tag=tag, media_type=media_types.OCI_INDEX)
    raise Conflict(f"others keep changing {repository.name}:{tag}", remedy="Push it again later.")


def _index(tagged: FetchedManifest | None) -> dict[str, Any]:
    if tagged is None:
        return {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": []}
    decode(tagged.data, ImageIndex, "the index of referrers")
    return from_json(tagged.data, dict[str, Any])


def _api(repository: Repository, subject: Digest, artifact_type: str | None) -> URL:
    url = repository.url("referrers", subject)
    return url if artifact_type is None else url.with_query({"artifactType": artifact_type})


async def _from_api(repository: Repository, subject: Digest, artifact_type: str | None) -> list[Descriptor] | None:
    url: URL | None = _api(repository, subject, artifact_type)
    found: list[Descriptor] = []
    for _ in range(_MAX_PAGES):
        if url is None:
            return found
        page = await _page(repository, url, PULL)
        if page is None:
            return None
        manifests, url = page
        found += manifests
        if len(found) > MAX_REFERRERS * 2:
            break
    raise _too_many(repository, subject)


async def _page(repository: Repository, url: URL, actions: str) -> tuple[list[Descriptor], URL | None] | None:
    """One page and where the next one is; None: there is no such API."""
    headers = {"Accept": media_types.OCI_INDEX}
    async with repository.request("GET", url, actions=actions, headers=headers) as response:
        if response.status in _NO_API:
            return None
        if response.status != 200:
            raise await refusal(response, f"the question who refers to something in {repository.name}")
        if response.content_type != media_types.OCI_INDEX:
            return None  # a page for people, from a server that answers everything
        data = await read_bounded(response, MAX_MANIFEST_BYTES, "the list of referrers")
        index = decode(data, ImageIndex, "the list of referrers")
        return index.manifests, _next(url, response.headers.getall("Link", []))


def _next(url: URL, links: list[str]) -> URL | None:
    for link in links:
        if match := _NEXT.fullmatch(link[:4096]):
            try:
                target = url.join(URL(match[1], encoded=True)).with_fragment(None)
                same = target.origin() == url.origin()
            except ValueError as error:
                raise RegistryGarbage("the next page of referrers is no URL", host=url.authority) from error
            check_target(target, url, "the next page of referrers")
            if not same:
                raise RegistryGarbage(f"the next page of referrers is on {target.authority}", host=url.authority)
            return target
    return None


def _too_many(repository: Repository, subject: Digest) -> RegistryGarbage:
    return RegistryGarbage(
        f"{repository.origin.authority}/{repository.name} lists more than {MAX_REFERRERS} referrers of {subject}",
        host=repository.origin.authority,
    )
