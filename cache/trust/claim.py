"""What a well-formed signature claims, before anybody has asked a key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from cache.trust.keys import PublicKey
from spec.errors import InvalidSignature

Format = Literal["v2", "v3"]
"""``v2``: simple signing at a tag; ``v3``: a Sigstore bundle as a referrer; by the Cosign that made it the default."""

N = TypeVar("N")


@dataclass(frozen=True, slots=True)
class Claim:
    """It says of the artifact that was asked about that it is the signer's; true if ``signature`` verifies."""

    format: Format
    message: bytes
    """The signed bytes."""
    signature: bytes
    """DER."""

    def check(self, keys: Iterable[tuple[N, PublicKey]]) -> N:
        """The name of the first key that made it. Raises InvalidSignature if none did."""
        tried = 0
        for name, key in keys:
            if key.verifies(self.signature, self.message):
                return name
            tried += 1
        which = "the key" if tried == 1 else f"any of the {tried} keys"
        raise InvalidSignature(f"it was not made by {which}, or was changed since")
