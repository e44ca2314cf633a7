"""Reading a tar from a stream, strictly: plain files and directories, bounded memory, nothing after the end.

Headers are decoded by :mod:`tarfile`; its archive reader is not used, because it holds extension headers of any size
in memory, takes a damaged header for the end, and knows links, devices and sparse members, all of which we refuse.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Protocol

from spec.errors import UnsafeArchive

BLOCK_BYTES: Final = 512
_MAX_EXTENSION_BYTES: Final = 64 * 1024
_MAX_PADDING_BYTES: Final = 1 << 20
"""Zeros after the end: tar pads to its record size, 10 KiB by default."""
_MAX_MEMBERS: Final = 10_000
_CHUNK_BYTES: Final = 1 << 20
_FILES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE})
_OVERRIDES = frozenset({"path", "size", "linkpath"})


class ByteStream(Protocol):
    """Where a tar comes from: a file, a decompressor, a hashing reader."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file in the tar; ``name`` is relative, without ``.`` and ``..``."""

    name: str
    size_bytes: int


class TarReader:
    """Iterate over :meth:`members`, and over :meth:`content` of a member before going on to the next."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._unread = 0
        self._padding = 0

    def members(self) -> Iterator[Member]:
        """The plain files, in order; content that was not read is skipped.

        Raises UnsafeArchive for links, devices, names that are absolute or leave the archive, two members of one
        name, a damaged or truncated archive, and anything but zeros after its end.
        """
        seen: set[str] = set()
        overrides: dict[str, str] = {}
        for _ in range(_MAX_MEMBERS):
            for _chunk in self.content():
                pass
            header = self._header()
            if header is None:
                self._check_end()
                return
            if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
                overrides |= self._extension(header)
                continue
            name = _safe_name(overrides.get("path", header.name))
            if header.isdir():
                overrides = {}
                continue
            if header.type not in _FILES or "linkpath" in overrides:
                raise UnsafeArchive(f"member {name!r} is neither a plain file nor a directory", member=name)
            if name in seen:
                raise UnsafeArchive(f"two members are named {name!r}", member=name)
            seen.add(name)
            size = _size(overrides.get("size"), header.size)
            overrides = {}
            self._begin(size)
            yield Member(name, size)
        raise UnsafeArchive(f"more than {_MAX_MEMBERS} members")

    def content(self) -> Iterator[bytes]:
        """The rest of the present member's content, in pieces of at most 1 MiB."""
        while self._unread:
            chunk = self._stream.read(min(self._unread, _CHUNK_BYTES))
            if not chunk:
                raise UnsafeArchive("the archive is truncated within a member")
            self._unread -= len(chunk)
            yield chunk
        self._exactly(self._padding)
        self._padding = 0

    def _begin(self, size_bytes: int) -> None:
        self._unread, self._padding = size_bytes, -size_bytes % BLOCK_BYTES

    def _header(self) -> tarfile.TarInfo | None:
        """The next header; None at the end marker."""
        block = self._exactly(BLOCK_BYTES)
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if not any(block):
                return None
            raise UnsafeArchive(f"not a tar header: {error}") from error
        if header.size < 0:
            raise UnsafeArchive(f"member {header.name!r} has a negative size")
        return header

    def _extension(self, header: tarfile.TarInfo) -> dict[str, str]:
        """What a pax or GNU extension header says about the member that follows."""
        if header.size > _MAX_EXTENSION_BYTES:
            raise UnsafeArchive(f"an extension header of {header.size} bytes")
        self._begin(header.size)
        data = b"".join(self.content())
        if header.type == tarfile.GNUTYPE_LONGNAME:
            return {"path": data.rstrip(b"\0").decode(errors="surrogateescape")}
        records = dict(_pax_records(data))
        if any(key.startswith("GNU.sparse.") for key in records):
            raise UnsafeArchive("sparse members are not accepted")
        found = {key: value for key, value in records.items() if key in _OVERRIDES}
        if header.type == tarfile.XGLTYPE and found:
            raise UnsafeArchive("a global header that renames or resizes every member")
        return found

    def _check_end(self) -> None:
        read = 0
        while chunk := self._stream.read(64 * 1024):
            read += len(chunk)
            if chunk.strip(b"\0") or read > _MAX_PADDING_BYTES:
                raise UnsafeArchive("something follows the end of the archive")

    def _exactly(self, size_bytes: int) -> bytes:
        data = b""
        while len(data) < size_bytes:
            chunk = self._stream.read(size_bytes - len(data))
            if not chunk:
                raise UnsafeArchive("the archive is truncated")
            data += chunk
        return data


def _pax_records(data: bytes) -> Iterator[tuple[str, str]]:
    """``LENGTH KEY=VALUE\\n``, where the length counts the whole record."""
    while data:
        length_text, space, _ = data[:20].partition(b" ")
        length = int(length_text) if length_text.isdigit() else 0
        record = data[:length]
        key, equals, value = record[len(length_text) + 1 : -1].partition(b"=")
        if not space or not equals or len(record) != length or record[-1:] != b"\n":
            raise UnsafeArchive("a damaged extension header")
        yield key.decode(errors="surrogateescape"), value.decode(errors="surrogateescape")
        data = data[length:]


def _safe_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UnsafeArchive(f"member {name[:200]!r} leaves the archive", member=name[:200])
    if not path.name and name.strip("./"):
        raise UnsafeArchive(f"member {name[:200]!r} has no name")
    return str(path)


def _size(text: str | None, in_header: int) -> int:
    if text is None:
        return in_header
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise UnsafeArchive(f"a member of {text[:40]!r} bytes")
    return int(text)
