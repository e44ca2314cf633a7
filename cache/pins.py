"""What this process needs of the store although no tag leads to it, told to other processes."""

from __future__ import annotations

import os
import weakref
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
        self._fresh: Counter[Digest] = Counter()
        self._held: Counter[Digest] = Counter()
        self._file: _PinFile | None = None
        self._owner = os.getpid()

    def add_fresh(self, digest: Digest) -> None:
        """A blob that this process has put, until :meth:`drop_fresh` for it; counted, since two may put the same."""
        self._fresh[digest] += 1
        self._write()

    def drop_fresh(self, digests: Iterable[Digest]) -> None:
        """These blobs, one count each, are referred to now, or given up."""
        self._fresh.subtract(digests)
        self._fresh += Counter()  # drops what is not above zero
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
            if self._file is None or path != self._file.path:
                pins.update(Digest(line) for line in path.read_text().split() if is_digest(line))
        return pins

    def _write(self) -> None:
        if self._owner != os.getpid():  # a forked child has pins of its own
            self._owner, self._file = os.getpid(), None
        pins = sorted({*self._fresh, *self._held})
        if not pins:
            self.close()
            return
        if self._file is None:
            self._file = _PinFile(*self._area.new_file())
        self._file.write("".join(f"{digest}\n" for digest in pins).encode())

    def close(self) -> None:
        """Give up all pins."""
        self._fresh.clear()
        self._held.clear()
        if self._file is not None:
            self._file.remove()
            self._file = None


class _PinFile:
    """Held locked while it exists; goes away with its owner, also at the end of the process."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self.remove = weakref.finalize(self, _remove, path, fd, os.getpid())

    def write(self, data: bytes) -> None:
        write_all(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))


def _remove(path: Path, fd: int, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child, which has inherited the descriptor
        path.unlink(missing_ok=True)
    os.close(fd)
