"""What the store remembers of artifacts, and nobody else can make it believe: what it made, where it pulled from.

A record is bound to the digest, and sealed with a key of the store's own (HMAC-SHA-256): one that was edited, made for
another digest, or copied from another store says nothing. Who can read the key can forge records, and could as well
edit the policy: it is the user whose daemon it is.

::

    ovms.blobs/trust/key                              32 random bytes, mode 0600
    ovms.blobs/trust/made-here/sha256-<hex>.json      a snapshot of a machine of this host
    ovms.blobs/trust/pulled-from/sha256-<hex>.json    repositories that the artifact was pulled from by digest
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final, Generic, Literal, TypeVar

import msgspec

from cache.blob_names import file_name
from cache.durable import write_durably
from cache.host_errors import host_errors, open_regular
from cache.temp_area import TempArea
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest
from spec.errors import CorruptStore, FileMissing, OvmsError

_KEY_BYTES: Final = 32
_MAX_RECORD_BYTES: Final = 16 << 10
Kind = Literal["made-here", "pulled-from"]


class MadeHere(msgspec.Struct, frozen=True, kw_only=True):
    """What the store remembers of an artifact that it made."""

    version: Literal[1] = 1
    digest: str
    base: str
    """The artifact that the machine was started from."""
    created: str


class PulledFrom(msgspec.Struct, frozen=True, kw_only=True):
    """Where the store got an artifact that may have no name."""

    version: Literal[1] = 1
    digest: str
    repositories: list[str]


R = TypeVar("R", bound=MadeHere | PulledFrom)


class _Sealed(msgspec.Struct, frozen=True, kw_only=True):
    record: msgspec.Raw
    mac: str


class SealedRecords(Generic[R]):
    """Those of one kind. Safe for threads and processes; methods block on the disk."""

    def __init__(self, directory: Path, kind: Kind, record: type[R], temp: TempArea) -> None:
        """``directory`` need not exist; ``temp`` is on its file system."""
        self._directory = directory / kind
        self._context = f"ovms {kind} v1\0".encode()
        self._record = record
        self._key_file = directory / "key"
        self._temp = temp
        self._lock = Lock()
        self._key: bytes | None = None

    def note(self, record: R) -> None:
        """Remember an artifact. Raises CorruptStore (a key that others could have read), NoSpace."""
        encoded = msgspec.json.encode(record)
        sealed = msgspec.json.encode(_Sealed(record=msgspec.Raw(encoded), mac=self._mac(self._own_key(), encoded)))
        with host_errors(self._directory):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self.path(record.digest), sealed, self._temp)

    def find(self, digest: Digest) -> R | None:
        """The record of an artifact; None if there is none, or none that this store has written."""
        try:
            with os.fdopen(open_regular(self.path(digest), follow_links=False), "rb") as file:
                sealed = from_json(file.read(_MAX_RECORD_BYTES), _Sealed)
            key = self._existing_key()
            if not hmac.compare_digest(sealed.mac.encode(), self._mac(key, bytes(sealed.record)).encode()):
                return None
            record = from_json(bytes(sealed.record), self._record)
        except (NotDecodable, OvmsError, OSError):
            return None
        return record if record.digest == digest else None

    def path(self, digest: str) -> Path:
        """Where the record of an artifact is, or would be."""
        return self._directory / f"{file_name(Digest(digest))}.json"

    def _own_key(self) -> bytes:
        with self._lock:
            with suppress(FileMissing):
                return self._existing_key()
            with host_errors(self._key_file):
                self._key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                part = self._key_file.with_name(f".key.{secrets.token_hex(8)}")
                fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.write(fd, secrets.token_bytes(_KEY_BYTES))
                    os.fsync(fd)
                    with suppress(FileExistsError):  # another process was faster: its key is the one
                        os.link(part, self._key_file)
                finally:
                    os.close(fd)
                    part.unlink(missing_ok=True)
            return self._existing_key()

    def _existing_key(self) -> bytes:
        """Raises FileMissing, CorruptStore."""
        if self._key is None:
            with os.fdopen(open_regular(self._key_file, follow_links=False), "rb") as file:
                status = os.fstat(file.fileno())
                key = file.read(_KEY_BYTES + 1)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077 or len(key) != _KEY_BYTES:
                raise CorruptStore(
                    f"{self._key_file} is not {_KEY_BYTES} bytes that only this user can read",
                    remedy="Remove it; snapshots that were made before then need a signature.",
                    path=str(self._key_file),
                )
            self._key = key
        return self._key

    def _mac(self, key: bytes, record: bytes) -> str:
        return hmac.new(key, self._context + record, hashlib.sha256).hexdigest()
