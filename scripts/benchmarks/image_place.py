"""Where a row has its RAM images: a tmpfs as it comes, or one with huge pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cache import huge_tmpfs
from scripts.benchmarks.row import NotHere

_TMPFS: Final = Path("/dev/shm")


@contextmanager
def image_place(*, huge: bool) -> Iterator[Path]:
    """A directory in memory, gone afterwards. Raises NotHere if huge pages can't be had."""
    with TemporaryDirectory(prefix="ovms-bench-images-", dir=_TMPFS) as directory:
        place = Path(directory) / "place"
        place.mkdir()
        if huge:
            try:
                huge_tmpfs.mount(place)
            except OSError as error:
                raise NotHere(f"no tmpfs with huge pages: {error.strerror}") from error
        try:
            yield place
        finally:
            if huge:
                huge_tmpfs.unmount(place)
