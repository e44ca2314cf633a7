"""``index.json`` of an OCI image layout: which artifacts are there, and their names.

An artifact has one descriptor per name. One without a name is listed by a descriptor without
``org.opencontainers.image.ref.name``, as skopeo and podman leave it when its name moves to another artifact.
What others wrote into the file is kept, fields we do not know included.

Signatures and the like are listed too, as in any layout. What they are about is told by an annotation of ours or by
Cosign's tag, so that those of one artifact are found without opening all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from cache.durable import write_durably
from cache.host_errors import host_errors
from cache.temp_area import TempArea
from spec import media_types
from spec.decoding import NotDecodable, from_builtins, from_json
from spec.digest import Digest, is_digest
from spec.errors import CorruptStore
from spec.oci import Descriptor, ImageIndex

_REF_NAME = media_types.ANNOTATION_REF_NAME
_SUBJECT = media_types.ANNOTATION_SUBJECT
_TAG_OF_REFERRER: Final = re.compile(r"(?:.*:)?sha256-([0-9a-f]{64})(?:\.[a-z]+)?")


@dataclass(frozen=True, slots=True)
class ListedArtifact:
    """One line of the index: a name (None: it has none) and the OCI manifest that it names."""

    name: str | None
    digest: Digest
    descriptor: Descriptor

    @property
    def subject(self) -> Digest | None:
        """What it is about, as far as the index tells; None for an artifact."""
        tag = _TAG_OF_REFERRER.fullmatch(self.name or "")
        subject = f"sha256:{tag[1]}" if tag else self.descriptor.annotations.get(_SUBJECT, "")
        return Digest(subject) if is_digest(subject) else None

    @property
    def is_artifact(self) -> bool:
        """Whether it is there for its own sake. An image of others counts too; a listing shows that it is none of ours.

        An OVMS artifact that was made from another one is an artifact.
        """
        return self.subject is None and self.descriptor.artifact_type in (None, media_types.MANIFEST)


class IndexFile:
    """Reads and rewrites the file. Rewriting is for the holder of the store's lock; readers see either state."""

    def __init__(self, path: Path, temp: TempArea) -> None:
        self.path = path
        self._temp = temp

    def listed(self) -> list[ListedArtifact]:
        """All entries, in the file's order. Raises CorruptStore."""
        try:
            index = from_builtins(self._read(), ImageIndex)
        except NotDecodable as error:
            raise CorruptStore(f"{self.path}: {error}", path=str(self.path)) from error
        return [ListedArtifact(each.annotations.get(_REF_NAME), each.content_digest, each) for each in index.manifests]

    def create(self) -> None:
        """Make an empty index unless there is one."""
        if not self.path.exists():
            self._write({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": []})

    def put(self, descriptor: Descriptor, name: str | None) -> None:
        """List an artifact, under a name or without. Another artifact that has the name stays, without it."""
        index = self._read()
        entries = index["manifests"]
        others = [each for each in entries if each["digest"] != descriptor.digest]
        own = [each for each in entries if each["digest"] == descriptor.digest]
        if name is None:
            if own:
                return
            own = [_entry(descriptor, None)]
        else:
            others = _without_name(others, name)
            # The first name takes the place of the entry without one.
            own = [each for each in own if _name(each) not in (None, name)] + [_entry(descriptor, name)]
        index["manifests"] = [*others, *own]
        self._write(index)

    def remove_name(self, name: str) -> Digest | None:
        """Remove the entry of that name; with its last name an artifact leaves the list. None: no such name."""
        index = self._read()
        found = [each for each in index["manifests"] if _name(each) == name]
        if not found:
            return None
        index["manifests"] = [each for each in index["manifests"] if _name(each) != name]
        self._write(index)
        return Digest(found[0]["digest"])

    def remove(self, digest: Digest) -> list[str]:
        """Remove all entries of an artifact; returns the names it had."""
        index = self._read()
        found = [each for each in index["manifests"] if each["digest"] == digest]
        if found:
            index["manifests"] = [each for each in index["manifests"] if each["digest"] != digest]
            self._write(index)
        return [name for each in found if (name := _name(each)) is not None]

    def _read(self) -> dict[str, Any]:
        with host_errors(self.path):
            try:
                data = self.path.read_bytes()
            except FileNotFoundError as error:
                raise CorruptStore(f"{self.path} is missing: not an OCI image layout", path=str(self.path)) from error
        try:
            index = from_json(data, dict[str, Any])
            from_builtins(index, ImageIndex)
        except NotDecodable as error:
            raise CorruptStore(f"{self.path}: {error}", path=str(self.path)) from error
        return index

    def _write(self, index: dict[str, Any]) -> None:
        write_durably(self.path, msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n", self._temp)


def _name(entry: dict[str, Any]) -> str | None:
    name = (entry.get("annotations") or {}).get(_REF_NAME)
    return name if isinstance(name, str) else None


def _entry(descriptor: Descriptor, name: str | None) -> dict[str, Any]:
    entry: dict[str, Any] = msgspec.to_builtins(descriptor)
    annotations = {_REF_NAME: name} if name is not None else {}
    if (subject := descriptor.annotations.get(_SUBJECT)) is not None:
        annotations[_SUBJECT] = subject
    entry.pop("annotations", None)
    return {**entry, "annotations": annotations} if annotations else entry


def _without_name(entries: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The entries without that name; one that loses its only name stays listed without any."""
    kept: list[dict[str, Any]] = []
    for each in entries:
        if _name(each) != name:
            kept.append(each)
        elif sum(other["digest"] == each["digest"] for other in entries) == 1:
            annotations = {key: value for key, value in each["annotations"].items() if key != _REF_NAME}
            kept.append({**each, "annotations": annotations})
    return kept
