"""Where blobs of the store came from and went to: what lets a registry mount them instead of being sent them.

A hint, no more: a registry that no longer has the blob there is sent it, and a store that can't be written to goes
without. Bounded, the oldest goes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from cache.durable import write_durably
from cache.host_errors import host_errors
from cache.lock import exclusive
from cache.temp_area import TempArea
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest
from spec.errors import OvmsError

_MAX_BLOBS: Final = 4096
_MAX_PLACES: Final = 4
"""Of one blob."""
_MAX_FILE_BYTES: Final = 8 << 20

Places = dict[str, list[str]]


class BlobPlaces:
    """A small file of a store; methods block on the disk."""

    def __init__(self, directory: Path, temp: TempArea) -> None:
        """``directory``: for two files; ``temp`` is on its file system."""
        self._path = directory / "places.json"
        self._lock = directory / "places.lock"
        self._temp = temp

    def note(self, host: str, repository: str, digests: Iterable[Digest]) -> None:
        """That repository of the registry ``host`` (``name[:port]``) has these blobs."""
        place = f"{host}/{repository}"
        with suppress(OvmsError), exclusive(self._lock), host_errors(self._path):
            places = self._read()
            before = {**places}
            for digest in digests:
                others = [each for each in places.pop(digest, []) if each != place]
                places[digest] = [place, *others][:_MAX_PLACES]
            while len(places) > _MAX_BLOBS:
                del places[next(iter(places))]
            if places != before:
                write_durably(self._path, msgspec.json.encode(places), self._temp)

    def elsewhere(self, host: str, repository: str) -> dict[Digest, str]:
        """For each blob that is known to be in another repository of that registry: the one noted last."""
        own = f"{host}/"
        found = {}
        for digest, known in self._read().items():
            others = [each.removeprefix(own) for each in known if each.startswith(own)]
            if others and repository not in others:
                found[Digest(digest)] = others[0]
        return found

    def _read(self) -> Places:
        try:
            with self._path.open("rb") as file:
                return from_json(file.read(_MAX_FILE_BYTES), Places)
        except (OSError, NotDecodable):
            return {}  # nothing is known: it will be, by and by
