"""A kernel or initrd on the command line: a file, or an https URL or registry reference that is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ovms_supervisor.cli.invocation import Invocation, run_async
from ovms_supervisor.cli.transfer_display import transfer_display
from spec.errors import InvalidReference

if TYPE_CHECKING:
    from cache.artifact import Part
    from cache.store import Store
    from spec.digest import Digest


class BootFile(click.Path):
    """A Path, or the text of a ref. What exists as a file is a file."""

    name = "file"

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, readable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refs are checked for their form only."""
        from spec.reference import parse_blob_ref

        text = str(value)
        if "://" not in text and (Path(text).exists() or not _names_registry(text)):
            return super().convert(value, param, ctx)
        try:
            parse_blob_ref(text)
        except InvalidReference as error:
            self.fail(error.detail, param, ctx)
        return text


def _names_registry(text: str) -> bool:
    """By the rule for references: a file that isn't there is not taken for a name in a registry."""
    first, slash, _ = text.partition("/")
    return bool(slash) and first not in (".", "..") and ("." in first or ":" in first or first == "localhost")


@contextmanager
def fetched(invocation: Invocation, store: Store, files: dict[Part, Path | str | None]) -> Iterator[dict[Part, Path]]:
    """The paths of those that are given, with those fetched that are refs; they are kept for the length of the block.

    Raises what fetching raises.
    """
    refs = {part: file for part, file in files.items() if isinstance(file, str)}
    paths = {part: file for part, file in files.items() if isinstance(file, Path)}
    added: list[Digest] = []
    try:
        if refs:
            paths |= run_async(lambda: _fetch(invocation, store, refs, added))
        yield paths
    finally:
        if added:
            store.leave(added)


async def _fetch(invocation: Invocation, store: Store, refs: dict[Part, str], added: list[Digest]) -> dict[Part, Path]:
    from cache.registry.access import open_registries
    from cache.registry.download import Downloads
    from cache.registry.fetch_ref import fetch_ref
    from ovms_supervisor.registries import access_of

    with transfer_display(quiet=invocation.json) as display:
        how = Downloads(report=display.report)
        async with open_registries(access_of(invocation.settings)) as registries:
            return {
                part: store.blob_path(await fetch_ref(store, registries, part, ref, how, added.append))
                for part, ref in refs.items()
            }
