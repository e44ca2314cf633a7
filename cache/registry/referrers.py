"""Signatures, SBOMs and other artifacts that refer to a manifest, each opened and checked.

An index of referrers is written by whoever may push, and some tools write wrong types into it: what an artifact is and
what it refers to is read from its own manifest, whose digest has been checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from cache.registry.client import Repository
from cache.registry.referrer_index import find_manifest, listed_referrers
from spec.digest import Digest, digest_of, hex_of
from spec.errors import ArtifactNotFound, InvalidManifest, RegistryGarbage
from spec.oci import MAX_MANIFEST_BYTES, Descriptor, decode

MAX_TOTAL_BYTES: Final = 16 << 20
"""Of the manifests of all referrers of an artifact: whoever may push can attach as many as he likes."""


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    """What manifests and indexes have in common."""

    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor | None = None
    subject: Descriptor | None = None
    layers: list[Descriptor] = []
    annotations: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """An artifact that refers to another one; verified against its digest, which is all that is known of it."""

    digest: Digest
    artifact_type: str
    """As its own manifest says, else the type of its config."""
    annotations: dict[str, str]
    layers: tuple[Descriptor, ...]
    data: bytes
    """Its manifest."""

    @property
    def total_bytes(self) -> int:
        """Of the manifest and what it lists."""
        return len(self.data) + sum(each.size for each in self.layers)


def signature_tag(subject: Digest) -> str:
    """The tag under which Cosign (v2) keeps the signatures of a manifest."""
    return f"sha256-{hex_of(subject)}.sig"


async def list_referrers(repository: Repository, subject: Digest, artifact_type: str | None = None) -> list[Referrer]:
    """What refers to ``subject``, all of it or only one type, in the order of the registry.

    What is listed but isn't there, or refers to something else, is left out. At most MAX_REFERRERS are opened.
    Raises RegistryError and its kinds (RegistryGarbage for more than MAX_TOTAL_BYTES of manifests), InvalidManifest for
    the list itself, DigestMismatch.
    """
    found, total_bytes = [], 0
    for each in await listed_referrers(repository, subject, artifact_type):
        referrer = await _opened(repository, each, subject)
        if referrer is not None and artifact_type in (None, referrer.artifact_type):
            found.append(referrer)
            total_bytes += len(referrer.data)
            if total_bytes > MAX_TOTAL_BYTES:
                host = repository.origin.authority
                raise RegistryGarbage(f"the referrers of {subject} have more than {MAX_TOTAL_BYTES} bytes", host=host)
    return found


async def signatures_by_tag(repository: Repository, subject: Digest) -> Referrer | None:
    """What is under Cosign's tag for ``subject``; None: nothing.

    Raises RegistryError and its kinds, InvalidManifest.
    """
    tagged = await find_manifest(repository, signature_tag(subject))
    return tagged_signatures(tagged.data) if tagged else None


async def _opened(repository: Repository, listed: Descriptor, subject: Digest) -> Referrer | None:
    if listed.size > MAX_MANIFEST_BYTES:
        return None
    try:
        data = (await repository.manifest(digest=listed.content_digest)).data
        return referrer_of(data, listed.content_digest, subject)
    except (ArtifactNotFound, InvalidManifest):
        return None


def referrer_of(data: bytes, digest: Digest, subject: Digest) -> Referrer | None:
    """A manifest of that digest as a referrer; None if it refers to something else. Raises InvalidManifest."""
    document = decode(data, _Document, f"the manifest {digest}")
    if document.subject is None or document.subject.digest != subject:
        return None
    kind = document.artifact_type or (document.config.media_type if document.config else "")
    return _referrer(data, document, digest, kind)


def tagged_signatures(data: bytes) -> Referrer:
    """A manifest that refers to something by its tag alone; its type is that of its layers. Raises InvalidManifest."""
    document = decode(data, _Document, "the manifest under a tag for signatures")
    types = {each.media_type for each in document.layers}
    return _referrer(data, document, digest_of(data), types.pop() if len(types) == 1 else "")


def _referrer(data: bytes, document: _Document, digest: Digest, artifact_type: str) -> Referrer:
    return Referrer(
        digest=digest,
        artifact_type=artifact_type,
        annotations=document.annotations,
        layers=tuple(document.layers),
        data=data,
    )
