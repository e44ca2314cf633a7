"""``ovm sign`` and ``ovm verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.commands.keys import ask_password
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation
from ovms_supervisor.cli.parameters import STORED
from ovms_supervisor.cli.signature_source import attach, find_signatures, in_registry
from spec.errors import NotVerified

if TYPE_CHECKING:
    from cache.trust.signature_manifest import SignatureManifest
    from spec.reference import DigestSource, Reference

_KEY_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    "sign",
    cls=OvmCommand,
    examples=[
        "ovm sign --key cosign.key demo:base",
        "ovm sign --key cosign.key --push registry.example.com/team/app:1",
        "COSIGN_PASSWORD=… ovm sign --key ci.key --signatures v2 demo:warm",
    ],
)
@click.argument("artifact", type=STORED, metavar="REF")
@click.option(
    "--key", "key_file", type=_KEY_FILE, required=True, metavar="FILE", help="cosign.key, or an EC key in PEM."
)
@click.option(
    "--signatures",
    "kind",
    type=click.Choice(["v2", "v3", "both"]),
    default="both",
    help="As Cosign v2 attaches them (a tag), as v3 does (a referrer), or both, the default.",
)
@click.option("--push", is_flag=True, help="Attach the signatures in the registry too; REF must be there already.")
@click.option("--plain-http", is_flag=True, help="Speak to this registry without TLS; on loopback that is the default.")
@pass_invocation
def sign_command(
    invocation: Invocation,
    artifact: Reference | DigestSource,
    key_file: Path,
    kind: str,
    push: bool,
    plain_http: bool,
) -> None:
    """Sign an artifact of the local store, and print the digest that was signed.

    The signatures are kept beside the artifact, and go where it is pushed or exported to. Signing again with the same
    key changes nothing. The password of the key is COSIGN_PASSWORD, or asked for.
    """
    from cache.trust.keys import read_private_key
    from cache.trust.local_signatures import keep_signatures, local_signatures
    from cache.trust.signature_manifest import sign_v2, sign_v3
    from cache.trust.verification import NamedKey, verify
    from spec.reference import Reference

    remote = in_registry(artifact, "--push") if push else None
    store = invocation.store()
    stored = store.artifact(store.resolve(artifact))
    key = read_private_key(key_file, ask_password)
    repository = artifact.name if isinstance(artifact, Reference) else stored.manifest.name
    own = NamedKey(str(key_file), key.public)
    present = {match.format for match in verify(local_signatures(store, stored.digest), stored.digest, [own]).matches}
    made: list[SignatureManifest] = []
    if kind in ("v2", "both") and "v2" not in present:
        made.append(sign_v2(stored.digest, repository, key))
    if kind in ("v3", "both") and "v3" not in present:
        made.append(sign_v3(stored.descriptor, key))
    for each in made:
        keep_signatures(store, stored.digest, repository, each)
    if remote is not None:
        signatures = local_signatures(store, stored.digest)
        attached = attach(invocation.settings, remote, stored.digest, signatures, plain_http=plain_http)
        output.message(f"{remote.name}: {attached} of {len(signatures)} were new there")
    if invocation.json:
        output.as_json({"digest": stored.digest, "fingerprint": key.public.fingerprint, "added": len(made)})
        return
    output.data(stored.digest)
    output.message(f"signed by {key.public.fingerprint}" if made else "already signed by this key")


@click.command(
    "verify",
    cls=OvmCommand,
    examples=[
        "ovm verify --key cosign.pub demo:base",
        "ovm verify --key cosign.pub --remote registry.example.com/team/app:1",
        "ovm verify --key a.pub --key b.pub demo:base --format json",
    ],
)
@click.argument("artifact", type=STORED, metavar="REF")
@click.option(
    "--key",
    "key_files",
    type=_KEY_FILE,
    required=True,
    multiple=True,
    metavar="FILE",
    help="cosign.pub; any of several.",
)
@click.option("--remote", is_flag=True, help="In the registry, even if the artifact is in the local store.")
@click.option("--plain-http", is_flag=True, help="Speak to this registry without TLS; on loopback that is the default.")
@pass_invocation
def verify_command(
    invocation: Invocation,
    artifact: Reference | DigestSource,
    key_files: tuple[Path, ...],
    remote: bool,
    plain_http: bool,
) -> None:
    """Check that an artifact was signed with a key, and print what matched.

    What is not in the local store is looked for in its registry. The exit code is 0 if at least one signature verifies,
    1 if none does, with the reason for each on stderr.
    """
    from cache.trust.keys import read_public_key
    from cache.trust.verification import NamedKey, verify

    keys = [NamedKey(str(path), read_public_key(path)) for path in key_files]
    digest, signatures = find_signatures(invocation, artifact, remote=remote, plain_http=plain_http)
    verified = verify(signatures, digest, keys)
    if not verified.matches:
        why = "; ".join(verified.rejected) or "it has no signature"
        raise NotVerified(f"{artifact} ({digest}): {why}", digest=digest, rejected=list(verified.rejected))
    rows: list[dict[str, Any]] = [
        {
            "key": match.key.name,
            "fingerprint": match.key.key.fingerprint,
            "signatures": match.format,
            "manifest": match.manifest,
        }
        for match in verified.matches
    ]
    if invocation.json:
        output.as_json({"digest": digest, "verified": rows, "rejected": verified.rejected})
        return
    output.data(digest)
    for row in rows:
        output.message(f"verified: {row['signatures']} signature by {row['key']} ({row['fingerprint']})")
    for reason in verified.rejected:
        output.message(f"not counted: {reason}")
