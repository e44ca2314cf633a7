"""manifest.json, every field of RFC §1. What we do with each is told in spec/manifest.md.

The structs check form (types, ranges, digests); :mod:`spec.admission` checks what v0.1 supports (§9).
Extensions to v0.1, named as such: ``ramSnapshot.parents``, ``runtimeHints.defaultMemoryBytes`` and
``runtimeHints.defaultCpus``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from spec import media_types
from spec.decoding import NotDecodable, from_json
from spec.errors import InvalidManifest, InvalidReference, UnsupportedManifest
from spec.oci import MAX_MANIFEST_BYTES
from spec.ramsnap import MAX_LAYERS
from spec.reference import BLOB_REF_PATTERN, BlobRef, parse_blob_ref

MAX_DISK_BYTES = 16 << 40
MAX_DEVICE_BYTES = 64 << 30
MAX_MEMORY_BYTES = 16 << 40
DEVICE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(?![\s\S])"
"""Ends in what ``$`` is taken for: in Python ``$`` lets a newline follow."""

Ref = Annotated[str, Meta(min_length=1, max_length=1024, extra_json_schema={"pattern": BLOB_REF_PATTERN})]
DiskFormat = Literal["qcow2", "raw"]


def _check_ref(ref: str) -> None:
    try:
        parse_blob_ref(ref)
    except InvalidReference as error:
        raise ValueError(error.detail) from error


class _Ref(msgspec.Struct, frozen=True, kw_only=True):
    ref: Ref

    def __post_init__(self) -> None:
        _check_ref(self.ref)

    @property
    def blob(self) -> BlobRef:
        """The reference, parsed."""
        return parse_blob_ref(self.ref)


class Kernel(_Ref, frozen=True, kw_only=True, omit_defaults=True):
    """What to boot: a Linux bzImage or PVH ELF, and its command line."""

    args: Annotated[str, Meta(max_length=4096)] = ""


class Initrd(_Ref, frozen=True, kw_only=True):
    """The initial RAM disk."""


class DiskLayer(_Ref, frozen=True, kw_only=True):
    """One layer of the disk, base first; ``size`` is that of the image file in the layer's tar, in bytes."""

    format: str
    size: Annotated[int, Meta(ge=0, le=MAX_DISK_BYTES)]


class RamSnapshot(_Ref, frozen=True, kw_only=True):
    """Memory and device state to continue from."""

    compression: str = "lz4"
    preload_hint: bool = False
    mlock_required: bool = False
    parents: Annotated[list[Ref], Meta(max_length=MAX_LAYERS - 1)] = []
    """Our extension: the blobs that this one, a layer, needs below it, bottom first (spec/ramsnap.md §4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for parent in self.parents:
            _check_ref(parent)


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A special device; v0.1 knows ``ivshmem``. ``size`` in bytes; ``mmio_addr`` is a hex string, a wish only."""

    type: str
    name: Annotated[str, Meta(pattern=DEVICE_NAME)]
    size: Annotated[int, Meta(ge=1, le=MAX_DEVICE_BYTES)] | None = None
    mmio_addr: Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{1,16}(?![\s\S])")] | None = None


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What the artifact was made for."""

    arch: str = "x86_64"
    uefi: bool = False


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who made it, when (RFC 3339), for what."""

    author: str | None = None
    created: str | None = None
    platform: Platform = Platform()


class RuntimeHints(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Wishes to the runtime. The ``default…`` fields are our extension: v0.1 has no memory or vCPU count."""

    preferred_runtime: list[str] = field(name="preferredRuntime", default_factory=list)
    cold_start_target_ms: Annotated[float, Meta(ge=0)] | None = field(name="coldStartTargetMs", default=None)
    default_memory_bytes: Annotated[int, Meta(ge=1 << 20, le=MAX_MEMORY_BYTES)] | None = field(
        name="defaultMemoryBytes", default=None
    )
    default_cpus: Annotated[int, Meta(ge=1, le=255)] | None = field(name="defaultCpus", default=None)


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """manifest.json. Made by :func:`decode_manifest`; never re-encoded, since digests are over the original bytes."""

    schema_version: Annotated[int, Meta(extra_json_schema={"const": 1})] = field(name="schemaVersion")
    media_type: Literal["application/vnd.ovms.manifest.v1+json"] = field(name="mediaType")
    name: Annotated[str, Meta(min_length=1, max_length=255)]
    version: Annotated[str, Meta(min_length=1, max_length=128)]
    kernel: Kernel
    initrd: Initrd | None = None
    disk_layers: Annotated[list[DiskLayer], Meta(max_length=64)] = field(name="diskLayers", default_factory=list)
    ram_snapshot: RamSnapshot | None = field(name="ramSnapshot", default=None)
    devices: Annotated[list[Device], Meta(max_length=32)] = field(default_factory=list)
    metadata: Metadata = Metadata()
    runtime_hints: RuntimeHints = field(name="runtimeHints", default_factory=RuntimeHints)


assert media_types.MANIFEST == "application/vnd.ovms.manifest.v1+json"  # noqa: S101 - Literal cannot name a constant

_VERSION_PROBE = re.compile(r"\d+")


class _Version(msgspec.Struct):
    schema_version: int = field(name="schemaVersion")


def decode_manifest(data: bytes) -> Manifest:
    """Decode and check the form of manifest.json.

    Raises InvalidManifest with the JSON path in ``fields['path']``, or UnsupportedManifest for another
    ``schemaVersion`` (checked first: a later version may have another shape).
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidManifest(f"manifest.json has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}", path="$")
    try:
        version = from_json(data, _Version).schema_version
        if version != 1:
            raise UnsupportedManifest(
                f"schemaVersion {version} at $.schemaVersion; this is OVMS v0.1, schemaVersion 1",
                path="$.schemaVersion",
            )
        manifest = from_json(data, Manifest)
        data.decode()  # the decoder does not look into what it has no field for
    except UnicodeDecodeError as error:
        raise InvalidManifest(f"manifest.json is not UTF-8: {error.reason}", path="$") from error
    except NotDecodable as error:
        raise InvalidManifest(
            f"{'' if error.is_json else 'manifest.json is not JSON: '}{error}", path=error.path
        ) from error
    return manifest


def unknown_fields(data: bytes) -> list[str]:
    """JSON paths of the fields of a manifest.json that v0.1 does not name, sorted.

    Raises InvalidManifest if there is something in one of them that is not JSON.
    """
    try:
        return sorted(_unknown(from_json(data, Any), Manifest, "$"))
    except NotDecodable as error:
        raise InvalidManifest(f"manifest.json is not JSON: {error}", path=error.path) from error


def _unknown(value: Any, kind: Any, path: str) -> Iterator[str]:
    struct, item = _struct_in(kind)
    if isinstance(value, list) and item is not None:
        for index, element in enumerate(value):
            yield from _unknown(element, item, f"{path}[{index}]")
    elif isinstance(value, dict) and struct is not None:
        known = {each.encode_name: each.type for each in msgspec.structs.fields(struct)}
        for name, element in value.items():
            if name not in known:
                yield f"{path}.{name}"
            else:
                yield from _unknown(element, known[name], f"{path}.{name}")


def _struct_in(kind: Any) -> tuple[type[msgspec.Struct] | None, Any]:
    """The struct that a field's type holds directly, and the item type if it is a list."""
    info = msgspec.inspect.type_info(kind)
    members = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    for member in members:
        while isinstance(member, msgspec.inspect.Metadata):
            member = member.type
        if isinstance(member, msgspec.inspect.StructType):
            return member.cls, None
        if isinstance(member, msgspec.inspect.ListType) and isinstance(member.item_type, msgspec.inspect.StructType):
            return None, member.item_type.cls
    return None, None
