"""``ovm policy check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation
from ovms_supervisor.cli.parameters import STORED
from ovms_supervisor.cli.signature_source import look_into_registry
from spec.errors import ArtifactNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cache.trust.decision import Decision
    from spec.reference import DigestSource, Reference


@click.command(
    "policy",
    cls=OvmCommand,
    examples=[
        "ovm policy check demo:warm",
        "ovm policy check demo:warm --cold",
        "ovm policy check registry.example.com/team/app:1 --format json | jq .rulings",
    ],
)
@click.argument("action", type=click.Choice(["check"]), metavar="check")
@click.argument("artifact", type=STORED, metavar="REF")
@click.option("--cold", is_flag=True, help="As if it were booted: without the rules for RAM snapshots.")
@click.option("--plain-http", is_flag=True, help="Speak to its registry without TLS; on loopback that is the default.")
@pass_invocation
def policy_command(
    invocation: Invocation,
    action: str,  # noqa: ARG001 - there is one, and room for more
    artifact: Reference | DigestSource,
    cold: bool,
    plain_http: bool,
) -> None:
    """Explain what the policy says of an artifact, and why, without starting it.

    What is not in the local store is looked for in its registry, without fetching more than manifests and signatures.
    The exit code is 0 if it would be admitted, else 1. The policy is the file that the setting 'policy' names, else
    etc/policy.toml below the root; spec/policy.md describes it.
    """
    from cache.trust.gate import Gate
    from cache.trust.policy_source import PolicySource
    from spec.reference import Reference

    store, settings = invocation.store(), invocation.settings
    gate = Gate(store, PolicySource(settings.root, settings.policy))
    try:
        stored = store.artifact(store.resolve(artifact))
        has_ram = stored.manifest.ram_snapshot is not None
        decision = gate.decide(stored.digest, artifact, ram_snapshot=has_ram and not cold)
    except ArtifactNotFound:
        if not isinstance(artifact, Reference) or artifact.registry is None:
            raise
        digest, has_ram, signatures = look_into_registry(settings, artifact, plain_http=plain_http)
        decision = gate.decide(digest, artifact, ram_snapshot=has_ram and not cold, signatures=lambda: signatures)
    if invocation.json:
        output.as_json(_document(decision))
    else:
        output.pairs(_facts(decision, str(gate.policy.path)))
    decision.require(str(artifact))


def _document(decision: Decision) -> dict[str, Any]:
    return {
        "digest": decision.digest,
        "admitted": decision.refused is None,
        "policy": str(decision.policy) if decision.policy else None,
        "made_here": decision.made_here,
        "scopes": decision.candidates,
        "rulings": [
            {
                "what": each.what,
                "name": each.name,
                "scope": each.scope,
                "by": each.by,
                "admitted": each.admitted,
                "reason": each.reason,
                "key": each.match.key.name if each.match else None,
                "fingerprint": each.match.key.key.fingerprint if each.match else None,
                "signature": each.match.format if each.match else None,
            }
            for each in decision.rulings
        ],
    }


def _facts(decision: Decision, path: str) -> Iterator[tuple[str, str]]:
    yield "digest", decision.digest
    if decision.policy is None:
        yield "policy", f"none: {path} is not there"
        yield "verdict", "admitted, like everything"
        return
    yield "policy", str(decision.policy)
    for name, scopes in decision.candidates.items():
        yield "scopes", f"{name}: {', '.join(scopes)}"
    for each in decision.rulings:
        what = "RAM snapshot" if each.what == "ramSnapshot" else each.what
        yield what, f"{'admitted' if each.admitted else 'refused'}: {each.reason}"
    yield "verdict", "admitted" if decision.refused is None else "refused"
