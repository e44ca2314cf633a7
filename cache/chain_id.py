"""Identities of stacks of disk layers, built as OCI builds its ChainID."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from spec.digest import Digest

FLAT_SUFFIX: Final = "-flat"
"""Of the name of a stack that was made into one image."""


def chain_ids(layers: Iterable[Digest]) -> list[str]:
    """For each layer the identity of the stack up to and with it, 64 hex digits; the base's is its own digest's.

    Over the digests of the layers' blobs, since those are what a manifest names.
    """
    ids: list[str] = []
    for digest in layers:
        below = f"sha256:{ids[-1]}" if ids else None
        ids.append(
            hashlib.sha256(f"{below} {digest}".encode()).hexdigest() if below else digest.removeprefix("sha256:")
        )
    return ids
