"""What the rules of a policy say of one artifact under one name: the nearest scope, and each of its requirements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cache.trust.decision import Ruling
from cache.trust.policy_file import Policy, Requirement, What
from cache.trust.scopes import DEFAULT, scopes_of
from cache.trust.signature_manifest import SignatureManifest
from cache.trust.verification import verify
from spec.digest import Digest
from spec.reference import Reference

Signatures = Callable[[], Sequence[SignatureManifest]]
"""Of the artifact; asked only if a rule demands one."""


def unpinned_parts(refs: Sequence[str]) -> Ruling:
    """A signature vouches for manifest.json; for what a tag in it meant at the time of the pull, nobody does."""
    reason = f"it takes parts from {', '.join(refs)} by tag: nothing vouches for them"
    return Ruling(what="artifact", name=None, scope=DEFAULT, by="unpinned", admitted=False, reason=reason)


def rulings_of(
    policy: Policy, what: What, name: Reference | None, digest: Digest, *, made_here: bool, signatures: Signatures
) -> Iterator[Ruling]:
    """One for each requirement of the nearest scope; one for all if the artifact was made here and that is enough."""
    rules = policy.rules[what]
    scope = next((each for each in scopes_of(name) if each in rules.scopes), DEFAULT) if name else DEFAULT
    requirements = rules.default if scope == DEFAULT else rules.scopes[scope]
    called = str(name) if name else None
    rejecting = any(each.kind == "reject" for each in requirements)
    if made_here and not (rejecting and scope != DEFAULT):
        # Stands for a signature, and for the default; not for what was refused by name.
        reason = "it was made here, as a snapshot"
        yield Ruling(what=what, name=called, scope=scope, by="madeHere", admitted=True, reason=reason)
        return
    for requirement in requirements:
        yield _ruling(requirement, what, called, scope, digest, signatures)


def _ruling(
    requirement: Requirement, what: What, name: str | None, scope: str, digest: Digest, signatures: Signatures
) -> Ruling:
    where = "the default" if scope == DEFAULT else f"the scope {scope!r}"
    side = " for RAM snapshots" if what == "ramSnapshot" else ""
    if requirement.kind != "signedBy":
        verb = "accepts" if requirement.kind == "accept" else "rejects"
        return Ruling(
            what=what,
            name=name,
            scope=scope,
            by=requirement.kind,
            admitted=requirement.kind == "accept",
            reason=f"{where}{side} {verb} it",
        )
    found = verify(signatures(), digest, requirement.keys, requirement.formats)
    keys = " or ".join(each.name for each in requirement.keys)
    if found.matches:
        match = found.matches[0]
        reason = f"{where}{side} demands a signature by {keys}: signed by {match.key.name} ({match.format})"
    else:
        match = None
        lacking = "; ".join(found.rejected[:8]) or "it has no signature"
        reason = f"{where}{side} demands a signature by {keys}: {lacking}"
    return Ruling(
        what=what, name=name, scope=scope, by="signedBy", admitted=match is not None, reason=reason, match=match
    )
