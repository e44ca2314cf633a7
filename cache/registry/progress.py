"""What a transfer tells about itself while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from spec.oci import Descriptor

State = Literal["waiting", "checking", "fetching", "sending", "there", "mounted", "done"]
"""Waiting for another process that downloads it; hashing what an earlier download left; fetching; sending; it was there
already; the registry took it from another of its repositories; it has arrived."""


@dataclass(frozen=True, slots=True)
class BlobProgress:
    """How far one blob is."""

    blob: Descriptor
    state: State
    at_bytes: int
    """How much of it is on disk or at the registry, or on its way there; it goes back when a part of it was lost."""


Report = Callable[[BlobProgress], None]
"""Called on the event loop, several times a second and blob: must return at once."""


def no_report(_: BlobProgress) -> None:
    """Nobody wants to know."""
