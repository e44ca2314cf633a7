"""A RAM snapshot to load: 1 GiB that compresses about as well as that of a busy guest (to 36 %), and its blob."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache.ramsnap import EncodedRamsnap, encode
from spec.compatibility import Compatibility, MemoryRegion
from spec.ramsnap import FRAME_BYTES
from spec.sizes import GIB, PAGE_BYTES

_DIFFERENT: Final = 16
"""Contents of 4 MiB that are made; the others are these, turned by a few bytes each."""
_NOISE_BYTES: Final = 50
_WORD_BYTES: Final = 24
_WORDS: Final = 8
"""Between two runs of noise: words of a small dictionary."""


@dataclass(frozen=True, slots=True)
class BlobOfRam:
    """A blob and what it is."""

    path: Path
    encoded: EncodedRamsnap


def make_blob(directory: Path, *, scattered: bool = False) -> BlobOfRam:
    """Write a blob into the directory. ``scattered``: every fourth page is zero: no frame has its pages together."""
    state, ram, blob = directory / "state", directory / "ram", directory / "blob"
    state.mkdir(parents=True)
    (state / "device").write_bytes(bytes(range(256)) * 200)
    chance = random.Random(1)
    contents = [_content(chance) for _ in range(_DIFFERENT)]
    with ram.open("wb") as file:
        for number in range(GIB // FRAME_BYTES):
            turned, content = number * 64, contents[number % _DIFFERENT]
            content = content[turned:] + content[:turned]
            file.write(_with_zeros(content) if scattered else content)
    encoded = encode(ram, state, _compatibility(), blob, created="2025-09-09T00:00:00Z")
    ram.unlink()
    return BlobOfRam(blob, encoded)


def _content(chance: random.Random) -> bytes:
    words = [chance.randbytes(_WORD_BYTES) for _ in range(200)]
    parts: list[bytes] = []
    while len(parts) * (_NOISE_BYTES + _WORDS * _WORD_BYTES) < FRAME_BYTES:
        parts.append(chance.randbytes(_NOISE_BYTES) + b"".join(chance.choices(words, k=_WORDS)))
    return b"".join(parts)[:FRAME_BYTES]


def _with_zeros(content: bytes) -> bytes:
    pages = [content[at : at + PAGE_BYTES] for at in range(0, FRAME_BYTES, PAGE_BYTES)]
    return b"".join(page if number % 4 else bytes(PAGE_BYTES) for number, page in enumerate(pages))


def _compatibility() -> Compatibility:
    return Compatibility(
        runtime="qemu",
        version="7.2.0",
        machine_type="microvm",
        accelerator="tcg",
        cpu_model="max",
        memory_bytes=GIB,
        cpus=1,
        regions=[MemoryRegion(name="ram", guest_address=0, image_offset=0, size_bytes=GIB)],
    )
