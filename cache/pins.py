"""What this process needs of the store although no tag leads to it, told to other processes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cache.durable import write_all
from cache.temp_area import TempArea
from spec.digest import Digest, is_digest


class Pins:
    """Digests that must not be removed: blobs whose manifest is yet to be stored, artifacts that machines run on.

    Each process has one file of them, which it holds locked: the pins of a process that died end with it. Not locked
    itself: call everything with the store's lock held, which makes 'not pinned, so removed' one step.
    """

    def __init__(self, directory: Path) -> None:
        self._area = TempArea(directory)
        self._fresh: set[Digest] = set()
        self._held: Counter[Digest] = Counter()
        self._file: tuple[Path, int] | None = None
        self._owner = os.getpid()

    def add_fresh(self, digest: Digest) -> None:
        """A blob that this process writes, until a manifest refers to it."""
        self._fresh.add(digest)
        self._write()

    def drop_fresh(self, digests: Iterable[Digest]) -> None:
        """These blobs are referred to now, or given up."""
        self._fresh.difference_update(digests)
        self._write()

    def hold(self, digest: Digest) -> None:
        """One more use of an artifact or blob."""
        self._held[digest] += 1
        self._write()

    def release(self, digest: Digest) -> None:
        """One use less."""
        self._held[digest] -= 1
        self._held += Counter()  # drops what is not above zero
        self._write()

    def everywhere(self) -> set[Digest]:
        """The pins of all living processes."""
        self._area.clean()
        pins = {*self._fresh, *self._held}
        for path in self._area.directory.iterdir():
            if self._file is None or path != self._file[0]:
                pins.update(Digest(line) for line in path.read_text().split() if is_digest(line))
        return pins

    def _write(self) -> None:
        if self._owner != os.getpid():  # a forked child has pins of its own
            self._owner, self._file = os.getpid(), None
        pins = sorted({*self._fresh, *self._held})
        if not pins:
            self._remove_file()
            return
        if self._file is None:
            self._file = self._area.new_file()
        data = "".join(f"{digest}\n" for digest in pins).encode()
        write_all(self._file[1], data, 0)
        os.ftruncate(self._file[1], len(data))

    def _remove_file(self) -> None:
        if self._file is not None:
            path, fd = self._file
            self._file = None
            path.unlink(missing_ok=True)
            os.close(fd)
