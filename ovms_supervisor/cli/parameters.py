"""Types of command line values, and completion of what the store and the daemon know."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ovms_supervisor.cli.invocation import Invocation, run_async
from spec.errors import InvalidInput, OvmsError

if TYPE_CHECKING:
    from spec.manifest import Device
    from spec.reference import DigestSource, Reference


class Size(click.ParamType):
    """A size such as ``512M``, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or fail as wrong usage."""
        from spec.sizes import parse_size

        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except InvalidInput as error:
            self.fail(error.detail, param, ctx)


class Name(click.ParamType):
    """A reference to be given to an artifact: ``name[:tag]``, with or without a host."""

    name = "ref"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reference:
        """Parse, or fail as wrong usage."""
        from spec.reference import Reference, parse_reference

        if isinstance(value, Reference):
            return value
        try:
            reference = parse_reference(value)
        except InvalidInput as error:
            self.fail(error.detail, param, ctx)
        if reference.digest is not None:
            self.fail(f"{value!r} has a digest; a new name has none", param, ctx)
        return reference


class StoredArtifact(click.ParamType):
    """An artifact of the local store: a reference, or a digest in full or as a prefix."""

    name = "ref"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Reference | DigestSource:
        """Parse, or fail as wrong usage."""
        from spec.reference import PathSource, parse_source

        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # converted before: click may call twice
        try:
            source = parse_source(value)
        except InvalidInput as error:
            self.fail(error.detail, param, ctx)
        if isinstance(source, PathSource):
            self.fail(f"{value!r} is a path; bring it into the store with 'ovm import' first", param, ctx)
        return source

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        """Names in the store."""
        return complete_references(ctx, incomplete)


class SharedMemoryDevice(click.ParamType):
    """An ivshmem device as ``name:size``."""

    name = "name:size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Device:
        """Parse, or fail as wrong usage; whether v0.1 supports it is checked when packing."""
        from spec.manifest import Device
        from spec.sizes import parse_size

        if isinstance(value, Device):
            return value
        name, colon, size = value.rpartition(":")
        if not colon or not name:
            self.fail(f"{value!r} is not NAME:SIZE, for example mmio0:1M", param, ctx)
        try:
            return Device(type="ivshmem", name=name, size=parse_size(size))
        except InvalidInput as error:
            self.fail(error.detail, param, ctx)


class Machine(click.ParamType):
    """A machine by id, unique prefix of an id, or name. The daemon knows which."""

    name = "machine"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Any text but none."""
        if not value:
            self.fail("the name of a machine is empty", param, ctx)
        return str(value)

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        """Ids and names of the machines there are; nothing if no daemon answers."""
        invocation = ctx.ensure_object(Invocation)

        async def listed() -> list[CompletionItem]:
            async with invocation.client() as client:
                machines = await client.instances()
            return [CompletionItem(each.name or each.instance_id[:12], help=each.status) for each in machines]

        with contextlib.suppress(OvmsError):
            return [item for item in run_async(listed) if item.value.startswith(incomplete)]
        return []


def complete_references(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Names in the local store that begin so."""
    with contextlib.suppress(OvmsError):
        listed = ctx.ensure_object(Invocation).store().list()
        return [CompletionItem(each.name) for each in listed if each.name and each.name.startswith(incomplete)]
    return []


SIZE = Size()
NAME = Name()
STORED = StoredArtifact()
DEVICE = SharedMemoryDevice()
MACHINE = Machine()
