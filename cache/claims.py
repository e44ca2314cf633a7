"""What somebody needs of the store for longer than a process lives, told to every process.

A claim names its owner, what it needs, and a witness: a file of the owner's, whose absence proves that the owner is
gone. So nobody has to be asked or restarted to find out what is still needed: a machine outlives its daemon, and the
run directory with the witnesses goes with a reboot.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from cache.durable import write_all, write_durably
from cache.temp_area import TempArea
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest, is_digest
from spec.errors import CorruptStore, InternalError

_OWNER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class _Claim(msgspec.Struct, frozen=True, kw_only=True):
    witness: str
    digests: list[str]


class Claims:
    """One file per owner. Not locked itself: call everything with the store's lock held."""

    def __init__(self, directory: Path, temp: TempArea) -> None:
        self._directory = directory
        self._temp = temp

    def make(self, owner: str, witness: Path, digests: Iterable[Digest], *, durable: bool) -> None:
        """Put a claim in the place of the owner's earlier one. ``durable``: it and the witness survive a power cut.

        Raises OSError, NoSpace, PermissionMissing.
        """
        claim = msgspec.json.encode(_Claim(witness=str(witness.absolute()), digests=sorted(digests)))
        if durable:
            write_durably(self._path(owner), claim, self._temp)
            return
        part, fd = self._temp.new_file()
        try:
            write_all(fd, claim, 0)
            part.rename(self._path(owner))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def drop(self, owner: str) -> None:
        """Give up what an owner has claimed, if anything. Raises OSError."""
        self._path(owner).unlink(missing_ok=True)

    def drop_dead(self) -> None:
        """Give up what owners that are gone have claimed. A claim that can't be read is left alone. Raises OSError."""
        for path in sorted(self._directory.iterdir()):
            with suppress(CorruptStore):
                _drop_if_dead(path)

    def everywhere(self) -> set[Digest]:
        """All that is claimed; a claim whose owner is gone is removed. Raises CorruptStore, OSError."""
        claimed: set[Digest] = set()
        for path in sorted(self._directory.iterdir()):
            if (claim := _drop_if_dead(path)) is not None:
                claimed.update(Digest(each) for each in claim.digests if is_digest(each))
        return claimed

    def _path(self, owner: str) -> Path:
        if not _OWNER.fullmatch(owner):
            raise InternalError(f"{owner!r} can own no claim")
        return self._directory / f"{owner}.json"


def _drop_if_dead(path: Path) -> _Claim | None:
    """The claim, unless its owner is gone: then it is removed."""
    claim = _read(path)
    if claim is not None and not _is_gone(Path(claim.witness)):
        return claim
    path.unlink(missing_ok=True)
    return None


def _read(path: Path) -> _Claim | None:
    """None for a claim that was not to survive the power cut that emptied it, and has not."""
    data = path.read_bytes()
    try:
        return from_json(data, _Claim) if data else None
    except NotDecodable as error:
        raise CorruptStore(
            f"{path} is damaged: nobody knows what it claims ({error})",
            remedy="Remove the file once the machine or disk that it is named after is gone.",
            path=str(path),
        ) from error


def _is_gone(witness: Path) -> bool:
    """Only a certain no counts: a witness that may not be looked at is there."""
    try:
        witness.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
