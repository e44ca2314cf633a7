"""Two functions of the LZ4 library, called by address: into a buffer that exists, without the GIL, without a copy.

python-lz4 offers neither: its decompressors return new ``bytes``, which are copied with the GIL held, 0.5 to 1.7 GB/s
where the library itself does 5. Its extension modules carry the library, or are linked to the system's; both export
what is needed here, under two names for the hash (the system's library prefixes it).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator
from typing import Any

import lz4.frame._frame


def _libraries() -> Iterator[ctypes.CDLL]:
    yield ctypes.CDLL(lz4.frame._frame.__file__)
    if name := ctypes.util.find_library("lz4"):
        yield ctypes.CDLL(name)


def _bind() -> tuple[Any, Any]:
    for library in _libraries():
        hash_of = getattr(library, "XXH32", None) or getattr(library, "LZ4_XXH32", None)
        decompress = getattr(library, "LZ4_decompress_safe", None)
        if hash_of is not None and decompress is not None:
            decompress.restype = ctypes.c_int
            decompress.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
            hash_of.restype = ctypes.c_uint
            hash_of.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
            return decompress, hash_of
    raise ImportError("neither python-lz4 nor the system has an LZ4 library with LZ4_decompress_safe and XXH32")


_decompress_safe, _xxh32 = _bind()


def decompress_block(source: int, length: int, to: int, room: int) -> int:
    """Decode a block of ``length`` bytes at the address ``source`` to the address ``to``; how many bytes it made.

    Never reads beyond the block nor writes beyond ``room`` (both less than 2 GiB); negative if it is malformed or would
    make more.
    """
    made: int = _decompress_safe(source, to, length, room)
    return made


def xxh32(address: int, length: int) -> int:
    """xxHash-32, seed 0, of bytes in memory."""
    value: int = _xxh32(address, length, 0)
    return value


def xxh32_of(content: bytes) -> int:
    """The same of ``bytes``."""
    value: int = _xxh32(content, len(content), 0)
    return value
