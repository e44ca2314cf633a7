"""``ovm images``: the RAM images that the daemon keeps resident."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ovms_supervisor.cli import output
from ovms_supervisor.cli.grammar import OvmCommand
from ovms_supervisor.cli.invocation import Invocation, pass_invocation, run_async
from spec.errors import BlobNotFound, DaemonUnreachable, InUse, InvalidReference, OvmsError
from spec.sizes import format_size

if TYPE_CHECKING:
    from ovms_supervisor.client import Client
    from spec.api import ImageInfo


@click.command("images", cls=OvmCommand, examples=["ovm images", "ovm images -q", "ovm images --free"])
@click.argument("digests", metavar="[DIGEST]...", nargs=-1)
@click.option("-q", "--quiet", is_flag=True, help="Print digests only.")
@click.option("--free", "freeing", is_flag=True, help="Free those images, or all that nobody uses, and print them.")
@pass_invocation
def images_command(invocation: Invocation, digests: tuple[str, ...], quiet: bool, freeing: bool) -> None:
    """List the RAM images that are resident: decompressed in memory, and shared by all clones of their snapshot.

    An image stays for the next clone when the last one has gone; --free gives its memory back. The next clone then
    loads it again. DIGEST may be shortened.
    """
    images = run_async(lambda: _listed(invocation, digests, freeing=freeing))
    if quiet or (freeing and not invocation.json):
        for each in images:
            output.data(each.digest)
        if freeing:
            output.message(f"freed {format_size(sum(each.size_bytes for each in images))}")
    elif invocation.json:
        output.as_json(images)
    else:
        output.table(("DIGEST", "ARTIFACTS", "SIZE", "LOCKED", "USERS"), [_row(each) for each in images])


async def _listed(invocation: Invocation, digests: tuple[str, ...], *, freeing: bool) -> list[ImageInfo]:
    try:
        async with invocation.client() as client:
            images = _chosen(await client.images(), digests)
            return await free(client, images, strict=bool(digests)) if freeing else images
    except DaemonUnreachable as error:
        if digests:
            raise
        output.message(f"ovm: {error.detail}; what an earlier one left resident, the next one takes over")
        return []


async def free(client: Client, images: list[ImageInfo], *, strict: bool) -> list[ImageInfo]:
    """Free images; those that are in use stay, which is an error only if it is ``strict``. Returns what has gone."""
    freed = []
    for each in images:
        try:
            await client.free_image(each.digest)
        except (BlobNotFound, InUse):
            if strict:
                raise
        else:
            freed.append(each)
    return freed


def _chosen(images: list[ImageInfo], digests: tuple[str, ...]) -> list[ImageInfo]:
    if not digests:
        return images
    return [_found(images, each) for each in digests]


def _found(images: list[ImageInfo], given: str) -> ImageInfo:
    matches = [each for each in images if each.digest.removeprefix("sha256:").startswith(given.removeprefix("sha256:"))]
    if len(matches) == 1:
        return matches[0]
    error: type[OvmsError] = InvalidReference if matches else BlobNotFound
    what = f"the digests of {len(matches)} images begin so" if matches else "no such image is resident"
    raise error(f"{given}: {what}", remedy="See 'ovm images'.")


def _row(image: ImageInfo) -> tuple[str, ...]:
    return (
        output.short_digest(image.digest),
        ", ".join(image.references) or "-",
        format_size(image.size_bytes),
        format_size(image.locked_bytes) if image.locked_bytes else "no",
        str(image.users),
    )
