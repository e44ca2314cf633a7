"""OCI image-spec v1.1 documents: descriptor, image manifest, image index.

Unknown fields are ignored on reading, as the image-spec demands; we never re-serialise what we read.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from spec import media_types
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest, digest_of, parse_digest
from spec.errors import InvalidDigest, InvalidManifest

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""Cap on manifests and other metadata (the registries' own limit)."""
MAX_LAYERS = 1024
"""Of a manifest; as many entries has an index at most."""

T = TypeVar("T")


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the content of a descriptor in an index runs on (image-index.md)."""

    architecture: str = ""
    os: str = ""


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What a blob is: type, digest, size in bytes (descriptor.md)."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    artifact_type: str | None = None
    platform: Platform | None = None

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size is negative")
        try:
            parse_digest(self.digest)
        except InvalidDigest as error:
            raise ValueError(error.detail) from error

    @property
    def content_digest(self) -> Digest:
        """The digest, validated when the descriptor was made."""
        return Digest(self.digest)


EMPTY_DESCRIPTOR = Descriptor(media_types.OCI_EMPTY, digest_of(media_types.EMPTY_CONFIG), len(media_types.EMPTY_CONFIG))


class ImageManifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An image manifest (manifest.md); for us always with ``artifactType`` and the empty config."""

    schema_version: int = msgspec.field(name="schemaVersion")
    media_type: str
    config: Descriptor
    layers: list[Descriptor]
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: dict[str, str] = {}


class ImageIndex(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An image index (image-index.md); also ``index.json`` of a layout."""

    schema_version: int = msgspec.field(name="schemaVersion")
    manifests: list[Descriptor]
    media_type: str | None = media_types.OCI_INDEX
    artifact_type: str | None = None
    annotations: dict[str, str] = {}


class ImageLayout(msgspec.Struct, frozen=True, rename="camel"):
    """The ``oci-layout`` marker file."""

    image_layout_version: str


def decode(data: bytes, kind: type[T], what: str) -> T:
    """Decode one of the documents above. Raises InvalidManifest, with the JSON path in ``fields['path']``."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidManifest(f"{what} has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}", path="$")
    try:
        return from_json(data, kind)
    except NotDecodable as error:
        raise InvalidManifest(f"{what}{':' if error.is_json else ' is not JSON:'} {error}", path=error.path) from error


def encode(document: Descriptor | ImageManifest | ImageIndex | ImageLayout) -> bytes:
    """The bytes whose digest names the document: compact JSON, fields in declaration order."""
    return msgspec.json.encode(document)
