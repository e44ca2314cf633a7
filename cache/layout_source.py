"""Reading a file layout (RFC §8) that somebody else made: a directory, or a tar of one."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cache.host_errors import explain, host_errors, open_regular
from cache.tar_reader import ByteStream, TarReader
from spec.errors import FileMissing, InvalidManifest, UnsafeArchive

_PREFIX = "ovm/"
"""The directory that RFC §8 draws around the layout; with or without it is fine."""
_MANIFEST = "manifest.json"


class LayoutSource(Protocol):
    """Files by their names in the layout, for example ``blobs/sha256-…``."""

    @contextmanager
    def open(self, name: str) -> Iterator[ByteStream]:
        """A plain file's content. Raises FileMissing; UnsafeArchive for a link or device."""


@contextmanager
def open_layout(path: Path) -> Iterator[LayoutSource]:
    """A directory or tar as a source. Raises FileMissing, UnsafeArchive."""
    if path.is_dir():
        inner = path / _PREFIX
        yield _Directory(inner if not (path / _MANIFEST).exists() and (inner / _MANIFEST).exists() else path)
        return
    with os.fdopen(open_regular(path), "rb", buffering=0) as file, host_errors(path):
        yield _Tar(file, path)


def read_document(source: LayoutSource, name: str, max_bytes: int) -> bytes:
    """A small file. Raises FileMissing, UnsafeArchive, InvalidManifest if it is larger than ``max_bytes``."""
    data = b""
    with source.open(name) as stream:
        while len(data) <= max_bytes and (chunk := stream.read(max_bytes + 1 - len(data))):
            data += chunk
    if len(data) > max_bytes:
        raise InvalidManifest(f"{name} has more than {max_bytes} bytes", path="$")
    return data


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def open(self, name: str) -> Iterator[ByteStream]:
        *parents, last = name.split("/")
        path = self._root / name
        fd = _open_beneath(self._root, parents, last, path)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise UnsafeArchive(f"{path} is not a plain file", member=name)
        with os.fdopen(fd, "rb", buffering=0) as file, host_errors(path):
            yield file


def _open_beneath(root: Path, parents: list[str], last: str, path: Path) -> int:
    """Open a file without following a link in any component below the root."""
    with host_errors(root):
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for parent in parents:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(parent, flags, dir_fd=directory)
            os.close(directory)
            directory = below
        return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise FileMissing(f"{path} is missing", path=str(path)) from error
        # With O_DIRECTORY a link is 'not a directory', whatever it points to.
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise UnsafeArchive(f"{path} is not a plain file, or a link leads to it", path=str(path)) from error
        raise explain(error, path) from error
    finally:
        os.close(directory)


class _Tar:
    """Looks at every header first, so that nothing is taken from an archive that is unsafe further on."""

    def __init__(self, file: io.FileIO, path: Path) -> None:
        self._file = file
        self._path = path
        tar = TarReader(file)
        # A member is announced when its header is read: the file then stands at its content.
        self._places = {member.name: (file.tell(), member.size_bytes) for member in tar.members()}
        if _MANIFEST in self._places or _PREFIX + _MANIFEST not in self._places:
            self._prefix = ""
        else:
            self._prefix = _PREFIX

    @contextmanager
    def open(self, name: str) -> Iterator[ByteStream]:
        place = self._places.get(self._prefix + name)
        if place is None:
            raise FileMissing(f"{name} is missing in {self._path}", path=str(self._path), member=name)
        self._file.seek(place[0])
        yield _Part(self._file, place[1])


class _Part:
    """The next bytes of a file, as a stream of their own."""

    def __init__(self, file: io.FileIO, size_bytes: int) -> None:
        self._file = file
        self._left = size_bytes

    def read(self, size: int, /) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data
