"""``ovm inspect``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation
from ovms_supervisor.cli.parameters import STORED
from ovms_supervisor.cli.referrers import show_referrers
from ovms_supervisor.terminal import neutral
from spec.errors import OvmsError
from spec.manifest import unknown_fields
from spec.sizes import format_size

if TYPE_CHECKING:
    from cache.artifact import Artifact
    from cache.store import Store
    from spec.reference import DigestSource, Reference


@click.command(
    "inspect",
    cls=OvmCommand,
    examples=[
        "ovm inspect demo:base",
        "ovm inspect demo:base --format json | jq .manifest.kernel.args",
        "ovm inspect demo:base --raw | sha256sum",
        "ovm inspect --referrers registry.example.com/demo/web:warm",
    ],
)
@click.argument("source", type=STORED, metavar="REF")
@click.option("--raw", is_flag=True, help="The bytes of manifest.json exactly as they are stored.")
@click.option(
    "--referrers",
    is_flag=True,
    help="List signatures, SBOMs and snapshots that refer to it, here and in the registry that REF names.",
)
@pass_invocation
def inspect_command(invocation: Invocation, source: Reference | DigestSource, raw: bool, referrers: bool) -> None:
    """Show the manifest of an artifact, its layers, what v0.1 does not know of it, and its RAM snapshot."""
    if referrers:
        if raw:
            raise click.UsageError("--raw and --referrers exclude each other")
        show_referrers(invocation, source)
        return
    store = invocation.store()
    artifact = store.artifact(store.resolve(source))
    if raw:
        raw_bytes = artifact.manifest_bytes
        # JSON may hold control characters of C1, and those that turn the direction of text.
        sys.stdout.buffer.write(
            neutral(raw_bytes.decode(errors="backslashreplace")).encode() if sys.stdout.isatty() else raw_bytes
        )
        sys.stdout.buffer.flush()
        return
    description = _describe(store, artifact)
    if invocation.json:
        output.as_json(description)
    else:
        output.pairs(_facts(artifact, description))


def _describe(store: Store, artifact: Artifact) -> dict[str, Any]:
    return {
        "digest": artifact.digest,
        "references": [each.name for each in store.list() if each.digest == artifact.digest and each.name],
        "subject": artifact.oci.subject.digest if artifact.oci.subject else None,
        "total_bytes": artifact.total_bytes,
        "manifest": msgspec.Raw(artifact.manifest_bytes),
        "unknown_fields": unknown_fields(artifact.manifest_bytes),
        "layers": [
            {**msgspec.to_builtins(each), "present": store.has_blob(each.content_digest)}
            for each in artifact.oci.layers
        ],
        "ram_snapshot": _ram_snapshot(store, artifact),
    }


def _ram_snapshot(store: Store, artifact: Artifact) -> dict[str, Any] | None:
    """What the header of the blob says; only the header is read and checked."""
    if artifact.manifest.ram_snapshot is None:
        return None
    from cache.ramsnap import read_header

    try:
        layer = artifact.layer(artifact.manifest.ram_snapshot.ref)
        header = read_header(store.blob_path(layer.content_digest))
    except OvmsError as error:
        return {"error": error.detail}
    return {"stored_bytes": layer.size, "header": msgspec.to_builtins(header)}


def _facts(artifact: Artifact, description: dict[str, Any]) -> Iterator[tuple[str, str]]:
    manifest = artifact.manifest
    yield "name", f"{manifest.name} {manifest.version}"
    yield "references", ", ".join(description["references"]) or "-"
    yield "digest", artifact.digest
    if description["subject"]:
        yield "made from", description["subject"]
    yield "size", format_size(artifact.total_bytes)
    if manifest.metadata.created:
        yield "created", f"{manifest.metadata.created} ({output.ago(manifest.metadata.created)})"
    if manifest.metadata.author:
        yield "author", manifest.metadata.author
    yield "platform", manifest.metadata.platform.arch
    yield "kernel", manifest.kernel.ref
    yield "kernel args", manifest.kernel.args or "-"
    if manifest.initrd:
        yield "initrd", manifest.initrd.ref
    for layer in manifest.disk_layers:
        yield "disk layer", f"{layer.ref} ({layer.format}, {format_size(layer.size)})"
    for device in manifest.devices:
        size = f", {format_size(device.size)}" if device.size else ""
        yield "device", f"{device.name} ({device.type}{size})"
    hints = manifest.runtime_hints
    if hints.preferred_runtime:
        yield "runtimes", ", ".join(hints.preferred_runtime)
    if hints.default_memory_bytes:
        yield "memory", format_size(hints.default_memory_bytes)
    if hints.default_cpus:
        yield "cpus", str(hints.default_cpus)
    yield from _ram_facts(artifact, description["ram_snapshot"])
    missing = [each["digest"] for each in description["layers"] if not each["present"]]
    if missing:
        yield "missing blobs", ", ".join(missing)
    if description["unknown_fields"]:
        yield "unknown fields", ", ".join(description["unknown_fields"])


def _ram_facts(artifact: Artifact, ram: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    snapshot = artifact.manifest.ram_snapshot
    if snapshot is None or ram is None:
        return
    yield "ram snapshot", snapshot.ref
    for parent in reversed(snapshot.parents):
        yield "a layer on", parent
    yield "preload", "yes" if snapshot.preload_hint else "no"
    yield "lock", "required" if snapshot.mlock_required else "no"
    if "error" in ram:
        yield "ram header", ram["error"]
        return
    header = ram["header"]
    made = header["compatibility"]
    yield "ram stored", f"{format_size(ram['stored_bytes'])} of {format_size(header['memory_bytes'])}"
    yield "made with", f"{made['runtime']} {made['version']}, {made['machine_type']}, {made['accelerator']}"
    yield "machine", f"{made['cpus']} x {made['cpu_model']}, {format_size(made['memory_bytes'])}"
