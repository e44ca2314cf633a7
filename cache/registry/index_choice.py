"""Of the artifacts that an OCI index lists, the one for this host (image-index.md; our annotations).

An entry is for this host if its platform is Linux on x86-64 or not told, and if this host has its runtime and CPU class
(annotations ``ovms.runtime`` and ``ovms.cpu-class``). Of several the best runtime wins, then the highest class that is
reached, then the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spec import media_types
from spec.cpu_class import NAMES
from spec.decoding import NotDecodable, from_json
from spec.errors import InvalidManifest, UnsupportedManifest
from spec.oci import MAX_LAYERS, Descriptor, ImageIndex, decode

ANY_RUNTIME = "generic"
_SHOWN = 12
_TYPES = frozenset({None, "", media_types.MANIFEST, media_types.OCI_EMPTY})
"""Of entries that may be an artifact of ours: some tools leave the type out, or give that of the config."""


@dataclass(frozen=True, slots=True)
class HostPlatform:
    """What this host can run."""

    runtimes: tuple[str, ...]
    """Those that are usable, best first."""
    cpu_class: int
    """An index into ``spec.cpu_class.NAMES``."""


def is_index(data: bytes) -> bool:
    """Whether a document that a registry calls a manifest is an index, as it says of itself."""
    try:
        document = from_json(data, dict[str, Any])
    except NotDecodable:
        return False  # who decodes it as a manifest has the words for what is wrong
    return document.get("mediaType", media_types.OCI_INDEX) == media_types.OCI_INDEX and "manifests" in document


def choose_entry(data: bytes, host: HostPlatform, what: str) -> Descriptor:
    """The entry for this host. Raises InvalidManifest, UnsupportedManifest with what there is instead.

    An index in an index is not followed.
    """
    index = decode(data, ImageIndex, "the OCI index")
    if len(index.manifests) > MAX_LAYERS:
        raise InvalidManifest(f"the OCI index has {len(index.manifests)} entries, more than {MAX_LAYERS}", path="$")
    fitting = [(rank, -n, each) for n, each in enumerate(index.manifests) if (rank := _rank(each, host)) is not None]
    if fitting:
        return max(fitting, key=lambda each: each[:2])[2]
    here = f"{', '.join(host.runtimes) or 'no usable runtime'} on linux/amd64 with {NAMES[host.cpu_class]}"
    there = "; ".join(_described(index)) or "nothing"
    raise UnsupportedManifest(
        f"{what} has nothing for this host ({here}); it has {there}",
        remedy="Name the digest of the one that you want, or use a host that suits one of them.",
        path="$.manifests",
        entries=[each.digest for each in index.manifests[:_SHOWN]],
    )


def _rank(entry: Descriptor, host: HostPlatform) -> tuple[int, int] | None:
    """How well an entry suits, the more the better; None: not at all."""
    if entry.media_type != media_types.OCI_MANIFEST or entry.artifact_type not in _TYPES:
        return None
    platform = entry.platform
    if platform is not None and (platform.os not in ("", "linux") or platform.architecture not in ("", "amd64")):
        return None
    runtime = entry.annotations.get(media_types.ANNOTATION_RUNTIME, ANY_RUNTIME)
    if runtime == ANY_RUNTIME:
        preference = 0
    elif runtime in host.runtimes:
        preference = len(host.runtimes) - host.runtimes.index(runtime)
    else:
        return None
    needed = entry.annotations.get(media_types.ANNOTATION_CPU_CLASS, NAMES[0])
    if needed not in NAMES[: host.cpu_class + 1]:
        return None
    return preference, NAMES.index(needed)


def _described(index: ImageIndex) -> Iterator[str]:
    for entry in index.manifests[:_SHOWN]:
        platform = entry.platform
        words = [entry.digest[:19]]
        if entry.media_type != media_types.OCI_MANIFEST:
            words.append(entry.media_type)
        elif entry.artifact_type not in _TYPES:
            words.append(str(entry.artifact_type))
        if platform is not None:
            words.append(f"{platform.os or 'any'}/{platform.architecture or 'any'}")
        ours = (media_types.ANNOTATION_RUNTIME, media_types.ANNOTATION_CPU_CLASS)
        words += [entry.annotations[key] for key in ours if key in entry.annotations]
        yield " ".join(word[:80] for word in words)
    if len(index.manifests) > _SHOWN:
        yield f"{len(index.manifests) - _SHOWN} more"
