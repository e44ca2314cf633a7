"""The policy: whether there is one, and whether it can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_supervisor.cli.doctor.finding import Finding, fail, ok, warn
from spec.errors import InvalidPolicy

if TYPE_CHECKING:
    from ovms_supervisor.config import Settings


def policy(settings: Settings) -> Finding:
    """What stands between an artifact and its start."""
    from cache.trust.policy_source import PolicySource

    source = PolicySource(settings.root, settings.policy)
    try:
        found = source.current()
    except InvalidPolicy as error:
        return fail("policy", str(source.path), f"nothing starts: {error.detail}", error.remedy)
    if found is None:
        return ok("policy", "none", f"every artifact may start; {source.path} would say which")
    accepting = [what for what, rules in found.rules.items() if any(each.kind == "accept" for each in rules.default)]
    if accepting:
        figure, why = str(source.path), f"its default accepts every {' and '.join(accepting)} that no scope names"
        return warn("policy", figure, why, "Let the default reject, and name what is to start under [scopes].")
    return ok("policy", f"{source.path}: {sum(len(rules.scopes) for rules in found.rules.values())} scopes")
