"""``ovm pack``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.boot_file import BootFile, fetched
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation
from ovms_supervisor.cli.parameters import DEVICE, NAME, SIZE

if TYPE_CHECKING:
    from spec.manifest import Device
    from spec.reference import Reference

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command(
    "pack",
    cls=OvmCommand,
    examples=[
        "ovm pack -t demo:base --kernel vmlinuz --initrd initrd.img --args 'console=ttyS0'",
        "ovm pack -t demo:web --kernel vmlinuz --disk base.qcow2 --disk web.qcow2 --memory 1G --cpus 2",
        "ovm pack -t demo:shm --kernel guest.elf --ivshmem mmio0:1M",
    ],
)
@click.option("-t", "--tag", "name", type=NAME, required=True, help="The name of the artifact: NAME[:TAG].")
@click.option(
    "--kernel",
    type=BootFile(),
    required=True,
    help="A Linux bzImage or a PVH ELF: a file, https://…#sha256:HEX, or HOST/NAME:TAG for that artifact's kernel.",
)
@click.option("--initrd", type=BootFile(), help="The initial RAM disk, likewise.")
@click.option(
    "--disk", "disks", type=_FILE, multiple=True, help="A layer of the disk, base first: one raw or qcow2, then qcow2."
)
@click.option("--args", default="", metavar="TEXT", help="The kernel command line.")
@click.option("--memory", type=SIZE, help="Memory of its machines, for example 512M.")
@click.option("--cpus", type=click.IntRange(1, 255), metavar="N", help="CPUs of its machines.")
@click.option("--ivshmem", "devices", type=DEVICE, multiple=True, help="A shared memory device.")
@click.option("--author", metavar="TEXT", help="Recorded in the metadata.")
@click.option(
    "--created", type=click.DateTime(), help="Recorded in the metadata instead of now (UTC); makes packing repeatable."
)
@pass_invocation
def pack_command(
    invocation: Invocation,
    name: Reference,
    kernel: Path | str,
    initrd: Path | str | None,
    disks: tuple[Path, ...],
    args: str,
    memory: int | None,
    cpus: int | None,
    devices: tuple[Device, ...],
    author: str | None,
    created: datetime | None,
) -> None:
    """Make an artifact of files and print its digest.

    The files are copied into the local store; no daemon is needed. What is named by URL or registry is fetched, and is
    part of the artifact from then on.
    """
    from cache.pack import PackRequest, pack

    store = invocation.store()
    with fetched(invocation, store, {"kernel": kernel, "initrd": initrd}) as files:
        request = PackRequest(
            name=name,
            kernel=files["kernel"],
            initrd=files.get("initrd"),
            disks=disks,
            args=args,
            memory_bytes=memory,
            cpus=cpus,
            devices=devices,
            created=created.replace(tzinfo=UTC) if created else datetime.now(UTC),
            author=author,
        )
        digest = pack(store, request)
    if invocation.json:
        output.as_json({"reference": name.local_name, "digest": digest})
        return
    output.data(digest)
    output.message(f"packed {name.local_name}")
