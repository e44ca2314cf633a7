"""Writing a file layout (RFC §8): a directory, or a tar of one, there complete or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cache.host_errors import host_errors
from cache.tar_writer import TarWriter
from spec.errors import Conflict, SizeMismatch


class LayoutTarget(Protocol):
    """Takes the files of a layout."""

    def add(self, name: str, size_bytes: int, content: Iterable[bytes]) -> None:
        """Write a file. Raises SizeMismatch if the content is longer or shorter, NoSpace."""


@contextmanager
def new_layout(destination: Path) -> Iterator[LayoutTarget]:
    """A target that becomes ``destination`` when the block ends without an error: a tar if it is called ``*.tar``.

    Raises Conflict if something is there (an empty directory aside), FileMissing, PermissionMissing, NoSpace.
    """
    with host_errors(destination):
        is_empty_directory = destination.is_dir() and not any(destination.iterdir())
        if not is_empty_directory and (destination.exists() or destination.is_symlink()):
            raise Conflict(
                f"{destination} exists", remedy="Choose another destination, or remove it first.", path=str(destination)
            )
        part = destination.with_name(f".{destination.name}.{secrets.token_hex(6)}.part")
        try:
            if destination.suffix == ".tar":
                with part.open("xb") as file:
                    tar = TarWriter(file)
                    yield tar
                    tar.finish()
            else:
                part.mkdir()
                yield _Directory(part)
            part.rename(destination)
        except BaseException:
            if part.is_dir():
                shutil.rmtree(part)
            part.unlink(missing_ok=True)
            raise


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, name: str, size_bytes: int, content: Iterable[bytes]) -> None:
        path = self._root / name
        path.parent.mkdir(exist_ok=True)
        with path.open("xb") as file:
            for chunk in content:
                file.write(chunk)
            if file.tell() != size_bytes:
                raise SizeMismatch(f"{name} has changed its size while it was read: it was {size_bytes} bytes")
