"""The local store: an OCI image layout that several processes and threads use at once.

::

    oci-layout  index.json  blobs/sha256/<hex>        the layout, as every OCI tool knows it
    ovms.blobs/disks/<chain id>/{image,record.json}   disk layers, extracted (cache.disk_layers)
    ovms.blobs/provenance/sha256-<hex>.json           signatures of imported artifacts (cache.file_layout)
    ovms.blobs/partial/<hex>                          blobs on their way from a registry (cache.partial_blob)
    ovms.blobs/trust/                                 what was made here, and more (cache.trust.sealed_records)
    ovms.blobs/{lock,tmp/,pins/}                      one writer at a time; unfinished files; what is in use
    ovms.blobs/claims/<owner>.json                    what outlives its process and is in use (cache.claims)
    ovms.blobs/used/<hex>                             when an artifact was last used (cache.last_use)

Nothing is visible under its name before it is complete and durable. What is in ``ovms.blobs`` can be removed when
nobody uses it: everything but the provenance is made again when needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cache.artifact import (
    Artifact,
    ExternalRef,
    decode_artifact,
    decode_oci_manifest,
    manifest_descriptor,
    manifest_layer,
)
from cache.blob_store import BlobStore
from cache.durable import write_durably
from cache.host_errors import host_errors
from cache.index_file import IndexFile, ListedArtifact
from cache.last_use import LastUse
from cache.reachability import needed_by
from cache.resolution import decode_resolution
from cache.unreferenced import Garbage, StoreParts, bury, destroy, is_referred_to, tree_bytes, unneeded
from spec import media_types
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest, hex_of
from spec.errors import ArtifactNotFound, BlobNotFound, CorruptStore, InvalidReference
from spec.oci import EMPTY_DESCRIPTOR, Descriptor, ImageLayout, encode
from spec.reference import DigestSource, Reference

_LAYOUT_VERSION: Final = "1.0.0"


class Store(BlobStore):
    """One per process and root; safe for threads. Methods block on the disk: call them in a thread from async code.

    Every method may raise NoSpace or PermissionMissing with the path.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.disks_dir = root / "ovms.blobs" / "disks"
        self.provenance_dir = root / "ovms.blobs" / "provenance"
        self._used_dir = root / "ovms.blobs" / "used"
        self.trust_dir = root / "ovms.blobs" / "trust"
        self._index = IndexFile(root / "index.json", self.temp)
        self._parts = StoreParts(
            blobs=self._blobs_dir,
            disks=self.disks_dir,
            partial=self.partial_dir,
            records=(self.provenance_dir, *(self.trust_dir / kind for kind in ("made-here", "pulled-from"))),
            temp=self.temp,
            index=self._index,
            pins=self._pins,
            claims=self._claims,
            last_use=LastUse(self._used_dir),
        )

    def create(self) -> None:
        """Make or open the layout, and remove what dead writers left. Raises CorruptStore."""
        with host_errors(self.root):
            for directory in (
                self._blobs_dir,
                self.temp.directory,
                self._pins_dir,
                self._claims_dir,
                self._used_dir,
                self.partial_dir,
                self.disks_dir,
                self.provenance_dir,
            ):
                directory.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._check_layout()
            self._index.create()
            self._index.listed()
            self.temp.clean()

    def _check_layout(self) -> None:
        path = self.root / "oci-layout"
        if not path.exists():
            write_durably(path, encode(ImageLayout(_LAYOUT_VERSION)) + b"\n", self.temp)
        try:
            version = from_json(path.read_bytes(), ImageLayout).image_layout_version
        except NotDecodable as error:
            raise CorruptStore(f"{path}: {error}", path=str(path)) from error
        if version.split(".")[0] != _LAYOUT_VERSION.split(".")[0]:
            raise CorruptStore(f"{path}: layout version {version}, known is {_LAYOUT_VERSION}", path=str(path))

    def put_artifact(self, oci_bytes: bytes, name: str | None) -> Digest:
        """Store and list an OCI manifest whose blobs are here; ``name`` moves to it. Raises BlobNotFound."""
        oci = decode_oci_manifest(oci_bytes)
        blobs = {each.content_digest for each in (oci.config, *oci.layers)}
        with self.adding() as added:
            if oci.config == EMPTY_DESCRIPTOR:
                added.append(self.put_bytes(media_types.EMPTY_CONFIG))
            digest = self.put_bytes(oci_bytes)
            added.append(digest)
            with self._locked():
                for blob in sorted(blobs):
                    if not self.has_blob(blob):
                        raise BlobNotFound(f"{blob} is not in the store", digest=blob)
                self._index.put(manifest_descriptor(oci_bytes), name)
        self.note_use(digest)
        return digest

    def put_referrer(
        self, data: bytes, descriptor: Descriptor, name: str | None, *, replaces: Digest | None = None
    ) -> bool:
        """Store and list a manifest that is about an artifact, whose blobs are here and added (:meth:`adding`).

        It goes as soon as nothing else needs its subject. With a name it takes the place of the one that has it, which
        must be ``replaces``: False, and nothing is listed, if somebody was faster.
        """
        with self.adding() as added:
            added.append(self.put_bytes(data))
            with self._locked():
                present = [each.digest for each in self._index.listed() if name is not None and each.name == name]
                if present not in ([], [descriptor.digest]) and present != [replaces]:
                    return False
                self._index.put(descriptor, name)
                if replaces is not None and replaces != descriptor.digest:
                    self._index.remove(replaces)
        return True

    def referrers(self, subject: Digest) -> list[ListedArtifact]:
        """Signatures and the like that say in the index that they are about an artifact, or that don't say."""
        listed = self._index.listed()
        return [each for each in listed if not each.is_artifact and each.subject in (subject, None)]

    def tag(self, name: str, digest: Digest) -> None:
        """Give a listed artifact one more name (``Reference.local_name``); another that has the name loses it."""
        with self._locked():
            found = next((each for each in self._index.listed() if each.digest == digest), None)
            if found is None:
                raise _not_found(digest)
            self._index.put(found.descriptor, name)

    def untag(self, name: str) -> Digest:
        """Remove a name, and with its last name the artifact from the list; its blobs stay. Raises ArtifactNotFound."""
        with self._locked():
            digest = self._index.remove_name(name)
        if digest is None:
            raise _not_found(name)
        return digest

    def unlist(self, digest: Digest) -> list[str]:
        """Remove an artifact from the list, whatever its names; returns them. Raises ArtifactNotFound."""
        with self._locked():
            if not any(each.digest == digest for each in self._index.listed()):
                raise _not_found(digest)
            return self._index.remove(digest)

    def resolve(self, source: Reference | DigestSource) -> Digest:
        """The OCI manifest that is meant. Raises ArtifactNotFound, InvalidReference for an ambiguous digest prefix."""
        listed = self.list()
        if isinstance(source, DigestSource):
            matches = {each.digest for each in listed if hex_of(each.digest).startswith(source.hex_prefix)}
            if len(matches) > 1:
                raise InvalidReference(
                    f"{source} is ambiguous: {len(matches)} artifacts begin so", matches=sorted(matches)
                )
        elif source.digest is not None:
            matches = {each.digest for each in listed if each.digest == source.digest}
        else:
            matches = {each.digest for each in listed if each.name == source.local_name}
        if not matches:
            raise _not_found(source)
        return matches.pop()

    def artifact(self, digest: Digest) -> Artifact:
        """Read, check and decode an artifact's two documents; its other blobs are checked when they are used.

        Raises ArtifactNotFound, BlobNotFound, DigestMismatch, SizeMismatch, InvalidManifest, UnsupportedManifest.
        """
        path = self.blob_path(digest)
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise _not_found(digest) from error
        oci_bytes = self.read_blob(Descriptor(media_types.OCI_MANIFEST, digest, size))
        oci = decode_oci_manifest(oci_bytes)
        manifest_bytes = self.read_blob(manifest_layer(oci))
        return decode_artifact(oci_bytes, oci, manifest_bytes, lambda: self._resolution(digest))

    def _resolution(self, digest: Digest) -> dict[ExternalRef, Descriptor]:
        """What the external refs of an artifact were resolved to, the last time that it was pulled."""
        found: dict[ExternalRef, Descriptor] = {}
        for each in self.referrers(digest):
            if each.descriptor.artifact_type == media_types.RESOLUTION:
                found = decode_resolution(self.read_blob(each.descriptor), digest)
        return found

    @contextmanager
    def adding(self) -> Iterator[list[Digest]]:
        """For storing an artifact: put its blobs, each into the list too, then the artifact, all in the block.

        Nobody removes them meanwhile. If the block raises, those that nothing else needs are removed.
        """
        added: list[Digest] = []
        try:
            yield added
        except BaseException:
            self.discard(added)
            raise
        with self._locked():
            self._pins.drop_fresh(added)

    def leave(self, digests: Iterable[Digest]) -> None:
        """Let go of blobs that this process has put; they stay until what nothing refers to is removed."""
        with self._locked():
            self._pins.drop_fresh(digests)

    def discard(self, digests: Iterable[Digest]) -> None:
        """Give up blobs that this process has put: those that nothing refers to are removed."""
        with self._locked():
            dropped = tuple(digests)
            self._pins.drop_fresh(dropped)
            for digest in set(dropped) - is_referred_to(self._parts, dropped, self._parts.roots()):
                self.blob_path(digest).unlink(missing_ok=True)

    def note_use(self, digest: Digest) -> None:
        """An artifact is used now: of those that may go, it goes last."""
        self._parts.last_use.note(digest)

    def size_bytes(self) -> int:
        """What blobs, extracted disks and unfinished files take on disk."""
        return tree_bytes(self.root / "blobs") + tree_bytes(self.root / "ovms.blobs")

    @contextmanager
    def collecting(self) -> Iterator[StoreParts]:
        """For the collection of garbage (cache.prune): nobody else changes the store meanwhile."""
        with self._locked():
            yield self._parts

    def remove_unreferenced(self, keep: Iterable[Digest] = ()) -> list[Garbage]:
        """Remove blobs and extracted disks that no listed, kept, pinned or claimed artifact needs; returns what went.

        Writers of this project are safe, in whatever process; a foreign tool that copies into the layout is not.
        Raises CorruptStore, having removed nothing, if a listed manifest can't be read: its blobs are unknown then.
        """
        with self._locked():
            garbage = unneeded(self._parts, needed_by(self._blobs_dir, self._parts.roots() | set(keep)))
            graves = bury(self._parts, garbage)
        destroy(self._parts, graves)
        return garbage

    def list(self) -> list[ListedArtifact]:
        """One entry per name, and one for each artifact without a name."""
        return [
            each for each in self._index.listed() if each.is_artifact
        ]  # the last public method: below it, 'list' means this one


def _not_found(what: object) -> ArtifactNotFound:
    return ArtifactNotFound(f"no artifact {what} in the local store", reference=str(what))
