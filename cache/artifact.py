"""An OVMS artifact as OCI holds it (RFC §2): an image manifest whose layers are manifest.json and what it refers to.

Layer 0 is manifest.json itself, under its media type; kernel, initrd, disk layers and RAM snapshot follow, each with
the media type of its use. The config is the empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import BlobNotFound, InvalidManifest, UnsupportedManifest
from spec.manifest import Manifest, decode_manifest
from spec.oci import MAX_LAYERS, Descriptor, ImageManifest, decode
from spec.reference import parse_blob_ref

Part = Literal["kernel", "initrd", "disk", "ram"]

_KERNEL = frozenset({media_types.KERNEL})
_INITRD = frozenset({media_types.INITRD})
_RAMSNAP = frozenset({media_types.RAMSNAP})


class ExternalRef(NamedTuple):
    """A ref and what it is for: of one name, the kernel is another blob than the initrd."""

    part: Part
    ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A verified, decoded artifact. Its blobs are described, not necessarily here or intact."""

    digest: Digest
    """Of the OCI manifest."""
    oci: ImageManifest
    oci_bytes: bytes
    manifest: Manifest
    manifest_bytes: bytes
    resolved: Mapping[ExternalRef, Descriptor] = field(default_factory=dict)
    """The blobs that manifest.json refers to and the OCI manifest does not list (:mod:`cache.resolution`)."""

    @property
    def descriptor(self) -> Descriptor:
        """Of the OCI manifest, as an index or a ``subject`` lists it."""
        return manifest_descriptor(self.oci_bytes)

    @property
    def kernel(self) -> Descriptor:
        """The kernel's blob."""
        return self._layer(self.manifest.kernel.ref, _KERNEL, "kernel")

    @property
    def initrd(self) -> Descriptor | None:
        """The initial RAM disk's blob."""
        return self._layer(self.manifest.initrd.ref, _INITRD, "initrd") if self.manifest.initrd else None

    @property
    def disk_layers(self) -> tuple[Descriptor, ...]:
        """The blobs of the disk's layers, base first."""
        return tuple(self._layer(each.ref, media_types.DISK_LAYERS, "disk") for each in self.manifest.disk_layers)

    @property
    def ramsnap(self) -> Descriptor | None:
        """The RAM snapshot's blob."""
        snapshot = self.manifest.ram_snapshot
        return self._layer(snapshot.ref, _RAMSNAP, "ram") if snapshot else None

    @property
    def ramsnap_parents(self) -> tuple[Descriptor, ...]:
        """The blobs that the RAM snapshot, a layer, needs below it, bottom first."""
        snapshot = self.manifest.ram_snapshot
        return tuple(self._layer(parent, _RAMSNAP) for parent in snapshot.parents) if snapshot else ()

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """All blobs that the OCI manifest lists, config included, each once."""
        unique = {each.digest: each for each in (self.oci.config, *self.oci.layers)}
        return tuple(unique.values())

    @property
    def external_blobs(self) -> tuple[Descriptor, ...]:
        """Those that come from elsewhere, each once."""
        return tuple({each.digest: each for each in self.resolved.values()}.values())

    @property
    def unpinned(self) -> tuple[str, ...]:
        """The refs that meant these blobs when the artifact was pulled, and may mean others at another time."""
        return tuple(dict.fromkeys(each.ref for each in self.resolved if "sha256:" not in each.ref))

    @property
    def total_bytes(self) -> int:
        """Bytes of the OCI manifest and of everything it lists."""
        return len(self.oci_bytes) + sum(each.size for each in self.blobs)

    def layer(self, ref: str) -> Descriptor:
        """The descriptor of what manifest.json refers to. Raises BlobNotFound."""
        return self._layer(ref, None)

    def check_roles(self) -> None:
        """Raise BlobNotFound or InvalidManifest unless each ref of manifest.json is a layer of the right type."""
        _ = (self.kernel, self.initrd, self.disk_layers, self.ramsnap, self.ramsnap_parents)

    def _layer(self, ref: str, allowed: Collection[str] | None, part: Part | None = None) -> Descriptor:
        for key, blob in self.resolved.items():
            if key.ref == ref and part in (key.part, None):
                return blob
        wanted = parse_blob_ref(ref).digest
        if wanted is None:
            raise BlobNotFound(
                f"{ref} is not stored with the artifact",
                remedy="Pull the artifact: what it refers to elsewhere is fetched then.",
                ref=ref,
            )
        layers = [each for each in self.oci.layers if each.digest == wanted]
        if not layers:
            raise BlobNotFound(f"manifest.json refers to {ref}, which is no layer of the artifact", ref=ref)
        for each in layers:
            if allowed is None or each.media_type in allowed:
                return each
        raise InvalidManifest(
            f"layer {ref} has the media type {layers[0].media_type!r} instead of {' or '.join(sorted(allowed or ()))}",
            path=f"$.layers[{self.oci.layers.index(layers[0])}].mediaType",
        )


def decode_oci_manifest(data: bytes) -> ImageManifest:
    """Decode the OCI manifest of an artifact.

    Raises InvalidManifest, or UnsupportedManifest for an image or artifact that is not OVMS.
    """
    oci = decode(data, ImageManifest, "the OCI manifest")
    if oci.schema_version != 2 or oci.media_type != media_types.OCI_MANIFEST:
        raise InvalidManifest(
            f"the OCI manifest has schemaVersion {oci.schema_version} and the media type {oci.media_type!r}",
            path="$.mediaType",
        )
    if oci.artifact_type != media_types.MANIFEST:
        found = oci.artifact_type or oci.config.media_type
        raise UnsupportedManifest(
            f"not an OVMS artifact: its type is {found!r}",
            remedy=f"An OVMS artifact has the artifactType {media_types.MANIFEST}.",
            path="$.artifactType",
        )
    if len(oci.layers) > MAX_LAYERS:
        raise InvalidManifest(f"the OCI manifest has {len(oci.layers)} layers, more than {MAX_LAYERS}", path="$.layers")
    return oci


def manifest_layer(oci: ImageManifest) -> Descriptor:
    """The layer that is manifest.json. Raises InvalidManifest unless there is exactly one."""
    found = [each for each in oci.layers if each.media_type == media_types.MANIFEST]
    if len(found) != 1:
        raise InvalidManifest(f"the artifact has {len(found)} layers that are a manifest.json", path="$.layers")
    return found[0]


def external_refs(manifest: Manifest, oci: ImageManifest) -> list[ExternalRef]:
    """The refs of manifest.json that are URLs or lead into a registry, and are no layer of the OCI manifest either."""
    refs = [ExternalRef("kernel", manifest.kernel.ref)]
    if manifest.initrd:
        refs.append(ExternalRef("initrd", manifest.initrd.ref))
    refs += [ExternalRef("disk", each.ref) for each in manifest.disk_layers]
    if manifest.ram_snapshot:
        refs.append(ExternalRef("ram", manifest.ram_snapshot.ref))
    listed = {each.digest for each in oci.layers}
    parsed = [(each, parse_blob_ref(each.ref)) for each in refs]
    return [each for each, blob in parsed if (blob.url or blob.registry) and blob.digest not in listed]


def decode_artifact(
    oci_bytes: bytes,
    oci: ImageManifest,
    manifest_bytes: bytes,
    resolve: Callable[[], Mapping[ExternalRef, Descriptor]] = dict,
) -> Artifact:
    """Put the two documents together; both have been checked against their digests.

    ``resolve`` is asked for the blobs of external refs, if there are any.
    Raises InvalidManifest or UnsupportedManifest, and BlobNotFound if manifest.json refers to what is no layer.
    """
    manifest = decode_manifest(manifest_bytes)
    artifact = Artifact(
        digest=digest_of(oci_bytes),
        oci=oci,
        oci_bytes=oci_bytes,
        manifest=manifest,
        manifest_bytes=manifest_bytes,
        resolved=resolve() if external_refs(manifest, oci) else {},
    )
    artifact.check_roles()
    return artifact


def manifest_descriptor(oci_bytes: bytes) -> Descriptor:
    """The descriptor of an artifact's OCI manifest."""
    return Descriptor(
        media_types.OCI_MANIFEST, digest_of(oci_bytes), len(oci_bytes), artifact_type=media_types.MANIFEST
    )
