"""``ovm ls``, ``tag`` and ``rmi``: the names in the local store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation
from ovms_supervisor.cli.parameters import NAME, STORED
from spec.errors import CorruptStore, OvmsError
from spec.sizes import format_size

if TYPE_CHECKING:
    from cache.store import Store
    from spec.digest import Digest
    from spec.reference import DigestSource, Reference


@click.command("ls", cls=OvmCommand, examples=["ovm ls", "ovm ls -q", "ovm ls --format json | jq '.[].reference'"])
@click.option("-q", "--quiet", is_flag=True, help="Print digests only.")
@pass_invocation
def ls_command(invocation: Invocation, quiet: bool) -> None:
    """List the artifacts of the local store, by name."""
    store = invocation.store()
    listed = sorted(store.list(), key=lambda each: (each.name is None, each.name or "", each.digest))
    if quiet:
        for digest in dict.fromkeys(each.digest for each in listed):
            output.data(digest)
        return
    entries = [_entry(store, each.name, each.digest) for each in listed]
    if invocation.json:
        output.as_json(entries)
        return
    output.table(
        ("REFERENCE", "DIGEST", "KIND", "SIZE", "CREATED"),
        [
            (
                each["reference"] or "<none>",
                output.short_digest(each["digest"]),
                each["kind"],
                format_size(each["size_bytes"]) if each["size_bytes"] is not None else "-",
                output.ago(each["created"]),
            )
            for each in entries
        ],
    )


def _entry(store: Store, name: str | None, digest: Digest) -> dict[str, Any]:
    """What one line says. A damaged artifact is listed too: else nobody could remove it."""
    entry: dict[str, Any] = {
        "reference": name,
        "digest": digest,
        "kind": "damaged",
        "size_bytes": None,
        "created": None,
    }
    try:
        artifact = store.artifact(digest)
    except OvmsError as error:
        return {**entry, "error": error.detail}
    manifest = artifact.manifest
    return {
        **entry,
        "kind": "snapshot" if manifest.ram_snapshot else "base",
        "size_bytes": artifact.total_bytes,
        "created": manifest.metadata.created,
    }


@click.command("tag", cls=OvmCommand, examples=["ovm tag demo:base demo:stable", "ovm tag sha256:1f0c9e demo:old"])
@click.argument("artifact", type=STORED, metavar="REF")
@click.argument("name", type=NAME, metavar="NAME")
@pass_invocation
def tag_command(invocation: Invocation, artifact: Reference | DigestSource, name: Reference) -> None:
    """Give an artifact another name; a name that another artifact has moves."""
    store = invocation.store()
    digest = store.resolve(artifact)
    store.tag(name.local_name, digest)
    if invocation.json:
        output.as_json({"reference": name.local_name, "digest": digest})
    else:
        output.message(f"{name.local_name} is {digest}")


@click.command("rmi", cls=OvmCommand, examples=["ovm rmi demo:old", "ovm rmi demo:a demo:b"])
@click.argument("names", type=STORED, metavar="REF...", nargs=-1, required=True)
@pass_invocation
def rmi_command(invocation: Invocation, names: tuple[Reference | DigestSource, ...]) -> None:
    """Remove names from the local store; a digest removes the artifact with all its names.

    An artifact leaves the list with its last name, and the store unless a machine needs it; what other artifacts need
    of it stays. 'ovm prune' removes it once the machine is gone.
    """
    from cache.prune import free

    store = invocation.store()
    found = [(each, store.resolve(each)) for each in names]  # all of them, before anything is changed
    removed = [line for each, digest in found for line in _remove(store, each, digest)]
    try:
        freed = free(store, {digest for _, digest in found})
    except CorruptStore as error:
        output.message(f"ovm: nothing was freed: {error.detail}")
    else:
        size = format_size(sum(each.size_bytes for each in freed))
        output.message(f"freed {size}" if freed else "freed nothing: other artifacts, names or machines need all of it")
    if invocation.json:
        output.as_json(removed)
    else:
        for each in removed:
            output.data(each["reference"] or str(each["digest"]))


def _remove(store: Store, given: Reference | DigestSource, digest: Digest) -> list[dict[str, str | None]]:
    from spec.reference import Reference

    if isinstance(given, Reference) and given.digest is None:
        store.untag(given.local_name)
        return [{"reference": given.local_name, "digest": digest}]
    names = store.unlist(digest)
    return [{"reference": name, "digest": digest} for name in names] or [{"reference": None, "digest": digest}]
