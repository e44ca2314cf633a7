"""Types of command line values, and completion of what the store and the daemon know."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ovms_supervisor.cli.invocation import Invocation, run_async
from ovms_supervisor.cli.output import short_id
from spec.errors import InvalidInput, InvalidReference, OvmsError

if TYPE_CHECKING:
    from spec.manifest import Device
    from spec.reference import DigestSource, Reference

    _ParamType = click.ParamType[Any]  # generic for type checkers only: older releases of click can't be subscripted
else:
    _ParamType = click.ParamType


class Parsed(_ParamType):
    """What ``parse`` makes of the text; an InvalidInput that it raises is wrong usage."""

    def __init__(
        self,
        name: str,
        parse: Callable[[str], Any],
        complete: Callable[[Invocation], list[CompletionItem]] | None = None,
    ) -> None:
        self.name = name
        self._parse, self._complete = parse, complete

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse once: click may come again with the result."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except InvalidInput as error:
            self.fail(error.detail, param, ctx)

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        """What begins so; nothing if store or daemon don't answer."""
        with contextlib.suppress(OvmsError):
            items = self._complete(ctx.ensure_object(Invocation)) if self._complete else []
            return [item for item in items if item.value.startswith(incomplete)]
        return []


def _size(text: str) -> int:
    from spec.sizes import parse_size

    return parse_size(text)


def _number(text: str) -> int:
    if text[:2].lower() != "0x":
        return _size(text)
    try:
        return int(text, 16)
    except ValueError as error:
        raise InvalidInput(f"{text[:40]!r} is not a number such as 4096, 4K or 0x1000") from error


def _tail(text: str) -> str:
    if text != "all" and not (text.isascii() and text.isdigit()):
        raise InvalidInput(f"{text[:40]!r} is neither 'all' nor a number of lines")
    return text


def _new_name(text: str) -> Reference:
    from spec.reference import parse_reference

    reference = parse_reference(text)
    if reference.digest is not None:
        raise InvalidReference(f"{text[:200]!r} has a digest; a new name has none")
    return reference


def _stored(text: str) -> Reference | DigestSource:
    from spec.reference import PathSource, parse_source

    source = parse_source(text)
    if isinstance(source, PathSource):
        raise InvalidReference(f"{text[:200]!r} is a path; bring it into the store with 'ovm import' first")
    return source


def _remote(text: str) -> Reference:
    from spec.reference import parse_reference

    reference = parse_reference(text)
    if reference.registry is None:
        raise InvalidReference(
            f"{text[:200]!r} names no registry (HOST[:PORT]/NAME[:TAG]); short names are those of the local store"
        )
    return reference


def _registry(text: str) -> str:
    from spec.reference import parse_reference

    host = text.removeprefix("https://").rstrip("/")
    if "/" in host or parse_reference(f"{host}/x").registry != host:
        raise InvalidReference(f"{text[:200]!r} is not a registry such as registry.example.com or localhost:5000")
    return host


def _startable(text: str) -> str:
    """As the daemon will read it: a path is made absolute, for the daemon has another directory and home."""
    from spec.reference import PathSource, parse_source

    source = parse_source(text)
    if not isinstance(source, PathSource):
        return text
    try:
        return str(source.path.expanduser().absolute())
    except RuntimeError as error:
        raise InvalidReference(f"{text[:200]!r} is in the home of a user that there isn't") from error


def _device(text: str) -> Device:
    from spec.manifest import Device
    from spec.sizes import parse_size

    name, colon, size = text.rpartition(":")
    if not colon or not name:
        raise InvalidInput(f"{text[:100]!r} is not NAME:SIZE, for example mmio0:1M")
    return Device(type="ivshmem", name=name, size=parse_size(size))


def _machine(text: str) -> str:
    if not text:
        raise InvalidInput("the id is empty")
    return text


def _references(invocation: Invocation) -> list[CompletionItem]:
    return [CompletionItem(each.name) for each in invocation.store().list() if each.name]


def _machines(invocation: Invocation) -> list[CompletionItem]:
    async def listed() -> list[CompletionItem]:
        async with invocation.client() as client:
            machines = await client.instances()
        return [CompletionItem(each.name or short_id(each.instance_id), help=str(each.status)) for each in machines]

    return run_async(listed)


SIZE = Parsed("size", _size)
"""``512M``, in bytes."""
NUMBER = Parsed("number", _number)
"""A non-negative number of bytes: decimal, 0x…, or a size."""
TAIL = Parsed("tail", _tail)
"""``all`` or a number of lines, as text."""
NAME = Parsed("ref", _new_name)
"""A Reference to be given to an artifact."""
STORED = Parsed("ref", _stored, _references)
"""A Reference or DigestSource of the local store."""
REGISTRY = Parsed("host", _registry)
"""The host of a registry, as references have it."""
REMOTE = Parsed("ref", _remote)
"""A Reference that names a registry."""
STARTABLE = Parsed("source", _startable, _references)
"""A reference, digest, or absolute path, as text."""
DEVICE = Parsed("name:size", _device)
"""An ivshmem Device; whether v0.1 supports it is checked when packing."""
MACHINE = Parsed("id", _machine, _machines)
"""An id, a unique prefix of one, or a name; the daemon knows which."""
