"""``ovm import`` and ``ovm export``: the file layout of RFC §8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation
from ovms_supervisor.cli.parameters import NAME, STORED

if TYPE_CHECKING:
    from spec.reference import DigestSource, Reference


@click.command("import", cls=OvmCommand, examples=["ovm import ./demo", "ovm import demo.tar -t demo:imported"])
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-t", "--tag", "name", type=NAME, help="Its name; default: that in its manifest, unless it names a registry."
)
@pass_invocation
def import_command(invocation: Invocation, path: Path, name: Reference | None) -> None:
    """Read an artifact from a directory or tar and print its digest.

    PATH has manifest.json and blobs/ (RFC §8). Every blob is checked against its digest.
    """
    from cache.file_layout import import_artifact

    store = invocation.store()
    digest = import_artifact(store, path, name)
    names = sorted(each.name for each in store.list() if each.digest == digest and each.name)
    if invocation.json:
        output.as_json({"digest": digest, "references": names})
        return
    output.data(digest)
    output.message(f"imported as {', '.join(names)}" if names else "imported without a name; 'ovm tag' gives it one")


@click.command("export", cls=OvmCommand, examples=["ovm export demo:base ./demo", "ovm export demo:base demo.tar"])
@click.argument("artifact", type=STORED, metavar="REF")
@click.argument("destination", type=click.Path(path_type=Path))
@pass_invocation
def export_command(invocation: Invocation, artifact: Reference | DigestSource, destination: Path) -> None:
    """Write an artifact to a directory, or to a tar if DESTINATION ends in .tar."""
    from cache.file_layout import export_artifact

    store = invocation.store()
    digest = store.resolve(artifact)
    export_artifact(store, digest, destination)
    if invocation.json:
        output.as_json({"digest": digest, "destination": str(destination.absolute())})
    else:
        output.message(f"exported {artifact} ({digest}) to {destination}")
