"""Whether one of an artifact's signatures was made by one of some keys, and if not, what each of them lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cache.trust.claim import Format
from cache.trust.keys import PublicKey
from cache.trust.signature_manifest import SignatureManifest, claims
from spec.digest import Digest
from spec.errors import InvalidSignature

FORMATS: Final[frozenset[Format]] = frozenset({"v2", "v3"})


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A public key, and what the operator calls it: the path of its file."""

    name: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class Match:
    """A signature that verifies."""

    key: NamedKey
    format: Format
    manifest: Digest
    """Of the manifest that has the signature."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome for one artifact."""

    matches: tuple[Match, ...]
    rejected: tuple[str, ...]
    """A sentence for each signature that was looked at and did not count."""


def verify(
    signatures: Iterable[SignatureManifest],
    subject: Digest,
    keys: Sequence[NamedKey],
    formats: Collection[Format] = FORMATS,
) -> Verified:
    """Look at every signature. Microseconds each; raises nothing."""
    matches: list[Match] = []
    rejected: list[str] = []
    by_name = [(each, each.key) for each in keys]
    for manifest in signatures:
        for claim in claims(manifest, subject):
            where = f"signature in {manifest.digest[:19]}"
            try:
                if isinstance(claim, InvalidSignature):
                    raise claim
                if claim.format not in formats:
                    raise InvalidSignature(f"it is in the format {claim.format}, which is not asked for")
                matches.append(Match(claim.check(by_name), claim.format, manifest.digest))
            except InvalidSignature as error:
                rejected.append(f"{where}: {error.detail}")
    return Verified(tuple(matches), tuple(rejected))
