"""``sha256-<hex>``: how a blob is called in a file layout (RFC §8) and as the backing file of a diff layer."""

from __future__ import annotations

from spec.digest import Digest, hex_of, is_digest


def file_name(digest: Digest) -> str:
    """The name of that blob."""
    return f"sha256-{hex_of(digest)}"


def digest_in(name: str) -> Digest | None:
    """The digest that a name stands for, or None if it is no blob's name."""
    algorithm, _, rest = name.partition("-")
    digest = f"{algorithm}:{rest}"
    return Digest(digest) if is_digest(digest) else None
