"""What the policy says of one artifact under one or several names, rule by rule, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cache.trust.policy_file import What
from cache.trust.verification import Match
from spec.digest import Digest
from spec.errors import InternalError, PolicyRejected
from spec.instance import TrustCheck, TrustInfo

Reason = Literal["accept", "signedBy", "madeHere"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """The outcome of one requirement."""

    what: What
    name: str | None
    """The name that the scope was found for; None: none."""
    scope: str
    by: Reason | Literal["reject", "unpinned"]
    """``unpinned``: a part of it is not told by a digest, so that nothing could vouch for it."""
    admitted: bool
    reason: str
    """A sentence."""
    match: Match | None = None

    def as_check(self) -> TrustCheck:
        """For the status of an instance."""
        if self.by == "reject" or self.by == "unpinned":
            raise InternalError("a refusal has nothing to show in a status")
        if self.match is None:
            return TrustCheck(what=self.what, scope=self.scope, by=self.by)
        return TrustCheck(
            what=self.what,
            scope=self.scope,
            by=self.by,
            key=self.match.key.name,
            fingerprint=self.match.key.key.fingerprint,
            signature=self.match.format,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """All rulings about an artifact; it is admitted if each of them admits it."""

    digest: Digest
    policy: Path | None
    """None: there is no policy, and everything is admitted."""
    rulings: tuple[Ruling, ...] = ()
    candidates: dict[str, list[str]] = field(default_factory=dict)
    """By name: the scopes that were looked for, nearest first."""
    made_here: bool = False

    @property
    def refused(self) -> Ruling | None:
        """The first ruling that refuses."""
        return next((each for each in self.rulings if not each.admitted), None)

    def info(self) -> TrustInfo:
        """For the status of an instance that was admitted."""
        return TrustInfo(
            policy=str(self.policy) if self.policy else None, checks=[each.as_check() for each in self.rulings]
        )

    def require(self, called: str) -> TrustInfo:
        """The info. Raises PolicyRejected with scope, rule and remedy if it was refused."""
        ruling = self.refused
        if ruling is None:
            return self.info()
        what = "the artifact" if ruling.what == "artifact" else "the RAM snapshot"
        raise PolicyRejected(
            f"{what} {called} ({self.digest}): {ruling.reason}",
            remedy=_remedy(ruling, self.policy, called),
            digest=self.digest,
            policy=str(self.policy),
            what=ruling.what,
            scope=ruling.scope,
            rule=ruling.by,
        )


def _remedy(ruling: Ruling, policy: Path | None, called: str) -> str:
    if ruling.by == "unpinned":
        return "Have its manifest refer to them by digest, or pack an artifact that has them as layers."
    table = "[scopes]" if ruling.what == "artifact" else "[ramSnapshot.scopes]"
    if ruling.by == "signedBy":
        return (
            f"Get its signatures with 'ovm pull', or sign it with 'ovm sign --key KEY {called}'; "
            f"'ovm policy check {called}' tells more."
        )
    return (
        f"If it is to run, give it a rule under {table} of {policy} that demands a signature, and sign it; "
        f"'ovm policy check {called}' tells more."
    )
