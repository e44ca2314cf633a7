"""One extracted disk image of the store, ``ovms.blobs/disks/<name>/``: complete, checked and durable, or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cache.durable import sync_directory, write_durably
from cache.host_errors import host_errors
from cache.lock import exclusive
from cache.store import Store
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest
from spec.qcow2 import BackingFormat

IMAGE: Final = "image"
_RECORD: Final = "record.json"
_READ_ONLY: Final = 0o444


class ExtractedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out when the image was made."""

    layer: Digest
    image: str
    """The path that the layers above name: where the image was then, and is unless the store was moved."""
    member: str
    format: BackingFormat
    size_bytes: int
    virtual_size_bytes: int
    inode: int
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What who makes an image knows of it."""

    layer: Digest
    member: str
    format: BackingFormat
    virtual_size_bytes: int


def extracted(store: Store, directory: Path, make: Callable[[Path], Made]) -> ExtractedRecord:
    """The record of an image that is there; else ``make`` writes it, durably, to the path that it is given.

    Any number of threads and processes may ask at once: one makes it. Raises what ``make`` does, NoSpace.
    """
    record = _intact(directory)
    if record is None:
        with exclusive(directory.with_suffix(".lock"), remove=True):
            record = _intact(directory) or _made(store, directory, make)
    return record


def _intact(directory: Path) -> ExtractedRecord | None:
    """None if there is none, or if the image is not the file that was checked."""
    try:
        record = from_json((directory / _RECORD).read_bytes(), ExtractedRecord)
        found = (directory / IMAGE).stat()
    except (OSError, NotDecodable):
        return None
    was = (str(directory / IMAGE), record.inode, record.size_bytes, record.modified_ns)
    return record if was == (record.image, found.st_ino, found.st_size, found.st_mtime_ns) else None


def _made(store: Store, directory: Path, make: Callable[[Path], Made]) -> ExtractedRecord:
    with host_errors(directory):
        store.temp.discard_directory(directory)
        part, held = store.temp.new_directory()
        try:
            image = part / IMAGE
            made = make(image)
            image.chmod(_READ_ONLY)
            found = image.stat()
            record = ExtractedRecord(
                layer=made.layer,
                image=str(directory / IMAGE),
                member=made.member,
                format=made.format,
                size_bytes=found.st_size,
                virtual_size_bytes=made.virtual_size_bytes,
                inode=found.st_ino,
                modified_ns=found.st_mtime_ns,
            )
            write_durably(part / _RECORD, msgspec.json.encode(record), store.temp)
            part.rename(directory)
            sync_directory(store.disks_dir)
        except BaseException:
            store.temp.discard_directory(part)
            raise
        finally:
            os.close(held)
    return record
