"""The image directory: what lies where, how an image becomes visible, and which ones survive a restart.

::

    sha256-<hex>/        an image: ram, state/, header.json, verified.json
    .staging/<uuid>/     one being made; whatever is there when a daemon starts is garbage

An image appears by one rename, when everything in it is verified. ``verified.json`` then says, of each file, its inode,
size and modification time, and in which boot of the host that was. A daemon that starts trusts an image exactly if all
of that still holds, because hashing it again would cost as much as loading it. This finds what crashes, clean-ups and
careless hands do. It is no defence against a program that runs as the daemon's own user: such a one could change
the daemon itself. The change time is left out on purpose: it moves when an instance drops its own link to the file.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from cache.available_memory import memory_available_bytes
from cache.host_errors import host_errors
from cache.huge_tmpfs import has_huge_pages
from cache.ramsnap.image_files import RAM_NAME, STATE_NAME
from cache.statfs import is_tmpfs
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest, hex_of
from spec.errors import CorruptRamsnap, OvmsError
from spec.ramsnap import RamsnapHeader

_HEADER_NAME: Final = "header.json"
_RECORD_NAME: Final = "verified.json"
_STAGING_NAME: Final = ".staging"
_IMAGE_NAME = re.compile(r"sha256-([0-9a-f]{64})")
_BLOCK_BYTES: Final = 512

_log = structlog.get_logger(__name__)


class _FileRecord(msgspec.Struct, frozen=True):
    inode: int
    size: int
    mtime_ns: int


class _Record(msgspec.Struct, frozen=True):
    digest: str
    boot_id: str
    files: dict[str, _FileRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An image that is complete and verified."""

    digest: Digest
    directory: Path
    header: RamsnapHeader

    @property
    def ram(self) -> Path:
        """The RAM image."""
        return self.directory / RAM_NAME

    @property
    def state_dir(self) -> Path:
        """The directory of the device state."""
        return self.directory / STATE_NAME

    def occupied_bytes(self) -> int:
        """Memory that its files take now. It grows: a clone that reads a hole has tmpfs put a page of zeros there."""
        total = 0
        for path in (self.ram, *(self.state_dir / file.name for file in self.header.state)):
            with suppress(FileNotFoundError):  # somebody cleaned up; those who use the image will say so
                total += path.stat().st_blocks * _BLOCK_BYTES
        return total


class ImageDirectory:
    """Blocking operations on the directory. Thread-safe as long as each digest is in one hand at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._staging = path / _STAGING_NAME
        self.huge_pages = False
        """Whether files here get huge pages; known when it is open."""

    def open(self) -> list[Published]:
        """Make the directory, remove what no daemon works on any more, and return the images that can be trusted.

        Raises PermissionMissing, NoSpace, HostLimit.
        """
        with host_errors(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Emptied, not made anew: confined VMMs that outlived their daemon have this very directory in their view.
            self._staging.mkdir(mode=0o700, exist_ok=True)
            for left in self._staging.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            self.huge_pages = has_huge_pages(self.path)
            return list(self._recover())

    @property
    def staging_dir(self) -> Path:
        """The staging area."""
        return self._staging

    def new_staging(self) -> Path:
        """A name in the staging area that nobody has; nothing is made."""
        return self._staging / uuid.uuid4().hex

    def stage(self) -> Path:
        """A new directory in the staging area, with an empty ``state/``. Raises NoSpace, PermissionMissing."""
        staging = self.new_staging()
        with host_errors(staging):
            staging.mkdir(mode=0o700)
            try:
                (staging / STATE_NAME).mkdir()
            except OSError:
                staging.rmdir()
                raise
        return staging

    def owns_staging(self, staging: Path) -> bool:
        """Whether the path is a directory of :meth:`stage`."""
        return staging.parent == self._staging

    def publish(self, staging: Path, digest: Digest, header: RamsnapHeader) -> Published:
        """Make a complete staging visible as the image of a digest, which must not exist; read-only from now on.

        Raises CorruptRamsnap if its files are not those of the header, NoSpace, HostLimit.
        """
        self._check_files(staging, header)
        with host_errors(staging):
            (staging / _HEADER_NAME).write_bytes(msgspec.json.encode(header))
            files = [staging / RAM_NAME, staging / _HEADER_NAME, *(staging / STATE_NAME).iterdir()]
            for file in files:
                file.chmod(0o444)
            record = _Record(digest, boot_id(), {str(file.relative_to(staging)): _file_record(file) for file in files})
            (staging / _RECORD_NAME).write_bytes(msgspec.json.encode(record))
            return Published(digest=digest, directory=staging.rename(self._place(digest)), header=header)

    def remove(self, digest: Digest) -> None:
        """Take an image away: out of sight by one rename, then file by file. Raises HostLimit."""
        place = self._place(digest)
        with host_errors(place):
            shutil.rmtree(place.rename(self.new_staging()))

    def discard(self, staging: Path) -> None:
        """Remove a staging directory, if it is there. Raises HostLimit."""
        with host_errors(staging):
            if staging.exists():
                shutil.rmtree(staging)

    def available_bytes(self) -> int:
        """What the file system could still take; a tmpfs may be larger than what the host has, which counts then."""
        figures = os.statvfs(self.path)
        free = figures.f_bavail * figures.f_frsize
        return min(free, memory_available_bytes()) if is_tmpfs(self.path) else free

    def _place(self, digest: Digest) -> Path:
        return self.path / f"sha256-{hex_of(digest)}"

    def _check_files(self, staging: Path, header: RamsnapHeader) -> None:
        """Names and sizes; what is in them was verified by the decoder, or just written by the VMM."""
        expected = {RAM_NAME: header.memory_bytes} | {f"{STATE_NAME}/{file.name}": file.size for file in header.state}
        with host_errors(staging):
            found = {
                str(path.relative_to(staging)): path.lstat()
                for path in (staging / RAM_NAME, *(staging / STATE_NAME).iterdir())
            }
        if {name: figures.st_size for name, figures in found.items()} != expected:
            raise CorruptRamsnap(f"{staging} does not hold the files of the snapshot's header, in these sizes")
        if not all(stat.S_ISREG(figures.st_mode) for figures in found.values()):
            raise CorruptRamsnap(f"{staging} holds something that is not a plain file")

    def _recover(self) -> Iterator[Published]:
        for place in sorted(self.path.iterdir()):
            match = _IMAGE_NAME.fullmatch(place.name)
            if match is None:
                continue
            digest = Digest(f"sha256:{match[1]}")
            try:
                yield self._trusted(place, digest)
            except (OSError, OvmsError, NotDecodable) as error:
                _log.warning("image dropped", digest=digest, why=str(error))
                self.remove(digest)

    def _trusted(self, place: Path, digest: Digest) -> Published:
        record = from_json((place / _RECORD_NAME).read_bytes(), _Record)
        header = from_json((place / _HEADER_NAME).read_bytes(), RamsnapHeader)
        if (record.digest, record.boot_id) != (digest, boot_id()):
            raise CorruptRamsnap("verified as another image, or before the host was started")
        self._check_files(place, header)
        present = {RAM_NAME, _HEADER_NAME, *(f"{STATE_NAME}/{file.name}" for file in header.state)}
        if present != record.files.keys():
            raise CorruptRamsnap("its files are not those that were verified")
        for name, known in record.files.items():
            if _file_record(place / name) != known:
                raise CorruptRamsnap(f"{name} was changed since it was verified")
        return Published(digest=digest, directory=place, header=header)


def boot_id() -> str:
    """Changes with every start of the host: files that are not on a tmpfs may have lost writes then."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _file_record(path: Path) -> _FileRecord:
    figures = path.lstat()
    return _FileRecord(figures.st_ino, figures.st_size, figures.st_mtime_ns)
