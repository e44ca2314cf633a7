"""A cpio archive as the kernel reads it (newc, Documentation/driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

import stat
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory (no content), a file or a link; root's, and without a time, so equal input gives equal bytes."""

    name: str
    mode: int
    content: bytes = b""


def directory(name: str) -> Entry:
    """A directory that everybody may read."""
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, content: bytes, *, executable: bool = False) -> Entry:
    """A plain file."""
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def archive(entries: list[Entry]) -> bytes:
    """The archive, uncompressed: unpacking costs an emulated CPU more than reading."""
    out = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        out += bytes(-len(out) % 4) + entry.content
        out += bytes(-len(out) % 4)
    return bytes(out)
