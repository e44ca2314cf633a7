"""How far a transfer is, on stderr: bars with rate and time left on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ovms_supervisor.cli import output
from ovms_supervisor.terminal import neutral_line
from spec import media_types
from spec.sizes import format_size

if TYPE_CHECKING:
    from cache.registry.progress import BlobProgress
    from spec.oci import Descriptor

_EVERY_S: Final = 5.0
"""Between two lines about a blob that takes long."""
_ENDED: Final = frozenset({"there", "done", "mounted"})


class TransferDisplay:
    """Shows nothing by itself: what :func:`transfer_display` gives with ``quiet``."""

    def begin(self, digest: str, blobs: Iterable[Descriptor]) -> None:
        """What is going to be transferred."""

    def report(self, progress: BlobProgress) -> None:
        """How far one of the blobs is."""
        blob = progress.blob
        self.show(blob.digest, title_of(blob), progress.state, progress.at_bytes, blob.size)

    def show(self, digest: str, title: str, state: str, at_bytes: int, size_bytes: int) -> None:
        """The same for who has no descriptor."""


@contextmanager
def transfer_display(*, quiet: bool = False) -> Iterator[TransferDisplay]:
    """A display for as long as the context lasts."""
    if quiet:
        yield TransferDisplay()
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


def title_of(blob: Descriptor) -> str:
    """What people call a blob."""
    return blob.annotations.get(media_types.ANNOTATION_TITLE) or blob.media_type


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    def whole() -> Column:
        return Column(no_wrap=True)

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=whole()),
        BarColumn(bar_width=12),
        DownloadColumn(table_column=whole()),
        TransferSpeedColumn(table_column=whole()),
        TimeRemainingColumn(compact=True, table_column=whole()),
        TextColumn("{task.fields[state]}", markup=False, table_column=whole()),
        console=Console(stderr=True),
    )


class _Bars(TransferDisplay):
    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def begin(self, digest: str, blobs: Iterable[Descriptor]) -> None:
        self._bars.console.print(digest, markup=False, highlight=False)
        for blob in blobs:
            self.show(blob.digest, title_of(blob), "waiting", 0, blob.size)

    def show(self, digest: str, title: str, state: str, at_bytes: int, size_bytes: int) -> None:
        if digest not in self._tasks:
            name = f"{neutral_line(title)[:14]:14} {output.short_digest(digest)[7:14]}"
            self._tasks[digest] = self._bars.add_task(name, total=size_bytes, state=state)
        self._bars.update(self._tasks[digest], completed=at_bytes, state="" if state == "fetching" else state)


class _Lines(TransferDisplay):
    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._last: dict[str, float] = {}
        self._ended: set[str] = set()

    def begin(self, digest: str, blobs: Iterable[Descriptor]) -> None:
        listed = list(blobs)
        output.message(f"{digest}: {len(listed)} blobs, {format_size(sum(each.size for each in listed))}")

    def show(self, digest: str, title: str, state: str, at_bytes: int, size_bytes: int) -> None:
        now = time.monotonic()
        if digest in self._ended:
            return
        if state in _ENDED:
            self._ended.add(digest)
        elif now - self._last.get(digest, self._began_s) < _EVERY_S:
            return
        self._last[digest] = now
        what = f"{output.short_digest(digest)} {neutral_line(title)}"
        size = format_size(size_bytes)
        output.message(
            f"{what}: {state}, {size}" if state in _ENDED else f"{what}: {state}, {_part(at_bytes, size_bytes)}"
        )


def _part(at_bytes: int, size_bytes: int) -> str:
    return f"{at_bytes / max(size_bytes, 1):.0%} of {format_size(size_bytes)}"
