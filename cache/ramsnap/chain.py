"""A snapshot with all the layers below it, and the one image that they make (spec/ramsnap.md §4)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.ramsnap.decoder import decode
from cache.ramsnap.head import read_index
from cache.ramsnap.image_copy import copy_image
from cache.ramsnap.image_files import RAM_NAME
from spec.digest import Digest
from spec.errors import BlobNotFound, CorruptRamsnap, Unsupported
from spec.ramsnap import DEFAULT_LIMITS, MAX_LAYERS, RamsnapHeader, RamsnapIndex, RamsnapLimits, resolved_bytes

BlobPath = Callable[[Digest], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One blob of a chain; its header has been read, but not verified."""

    digest: Digest
    blob: Path
    index: RamsnapIndex


@dataclass(frozen=True, slots=True)
class Chain:
    """The layers of a snapshot, bottom first; the topmost is the snapshot itself. Made by :func:`read_chain`."""

    layers: tuple[Layer, ...]

    @property
    def header(self) -> RamsnapHeader:
        """The snapshot's own."""
        return self.layers[-1].index.header

    @property
    def parents(self) -> tuple[Digest, ...]:
        """The blobs that the snapshot needs besides its own, bottom first."""
        return tuple(layer.digest for layer in self.layers[:-1])

    @property
    def image_bytes(self) -> int:
        """What the decoded image takes at most: pages and state files."""
        return resolved_bytes([layer.index for layer in self.layers])

    def decode(
        self,
        destination: Path,
        *,
        below: tuple[Digest, Path] | None = None,
        limits: RamsnapLimits = DEFAULT_LIMITS,
        threads: int | None = None,
        stop: threading.Event | None = None,
    ) -> RamsnapHeader:
        """Decode the image into ``destination/ram`` and ``destination/state/``; ``destination`` must not exist.

        ``below``: the image of one of the parents, verified and whole, which is copied instead of decoding it again.
        Every layer is verified by its digest before this returns. When it raises, the destination may be left: what
        :func:`cache.ramsnap.decode` raises.
        """
        bottom, *above = self.layers
        parent = bottom.digest
        if below is None:
            header = decode(bottom.blob, parent, destination, limits=limits, threads=threads, stop=stop)
        else:
            parent, image = below
            above = list(self.layers[[layer.digest for layer in self.layers].index(parent) + 1 :])
            header = self.header  # replaced below: the image is that of a parent
            destination.mkdir(mode=0o700, parents=True)
            copy_image(image / RAM_NAME, destination / RAM_NAME, threads=threads, stop=stop)
        for layer in above:
            header = decode(
                layer.blob, layer.digest, destination, onto=parent, limits=limits, threads=threads, stop=stop
            )
            parent = layer.digest
        return header


def read_chain(digest: Digest, blob: Path, blob_path: BlobPath, *, limits: RamsnapLimits = DEFAULT_LIMITS) -> Chain:
    """Read the headers of a snapshot and of all layers below it, whose blobs are found by ``blob_path``.

    Raises BlobNotFound (also: a parent is not there), CorruptRamsnap (also: a parent of another size of memory, or one
    that is in the chain already), SizeMismatch, Unsupported (also: too many layers).
    """
    layers = [Layer(digest=digest, blob=blob, index=read_index(blob, limits=limits))]
    while (parent := layers[0].index.header.parent) is not None:
        if any(layer.digest == parent for layer in layers):
            raise CorruptRamsnap(f"the ramsnap {digest} is a layer on itself", parent=parent)
        if len(layers) == MAX_LAYERS:
            raise Unsupported(f"the ramsnap {digest} has more than {MAX_LAYERS} layers", parent=parent)
        below = Digest(parent)
        try:
            index = read_index(blob_path(below), limits=limits)
        except BlobNotFound as error:
            raise BlobNotFound(
                f"the ramsnap {layers[0].digest} is a layer on {parent}, which the store does not have",
                digest=digest,
                parent=parent,
            ) from error
        if index.header.memory_bytes != layers[0].index.header.memory_bytes:
            raise CorruptRamsnap(
                f"the ramsnap {layers[0].digest} has {layers[0].index.header.memory_bytes} bytes of RAM, its parent "
                f"{index.header.memory_bytes}",
                parent=parent,
            )
        layers.insert(0, Layer(digest=below, blob=blob_path(below), index=index))
    return Chain(tuple(layers))
