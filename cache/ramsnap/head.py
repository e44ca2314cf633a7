"""The beginning of a blob: what it says of the rest, before any of that is read."""

from __future__ import annotations

import os
from pathlib import Path

from cache.host_errors import explain
from cache.ramsnap.lz4_frame import DESCRIPTOR_BYTES, decode_header_frame, header_frame_bytes, header_payload_bytes
from spec.errors import BlobNotFound, CorruptRamsnap, SizeMismatch
from spec.ramsnap import DEFAULT_LIMITS, RamsnapHeader, RamsnapIndex, RamsnapLimits, parse_index


def read_index(blob: Path, *, limits: RamsnapLimits = DEFAULT_LIMITS) -> RamsnapIndex:
    """Header and frame table of a blob, consistent and within the limits, but not verified against any digest.

    Raises BlobNotFound, CorruptRamsnap, SizeMismatch (the file is not as long as its frames), Unsupported.
    """
    with os.fdopen(open_blob(blob), "rb", buffering=0) as stream:
        prefix = stream.read(DESCRIPTOR_BYTES)
        wanted = head_bytes(prefix, limits) - len(prefix)
        index = parse_head(prefix + stream.read(wanted), limits)
        check_length(os.fstat(stream.fileno()).st_size, index)
    return index


def read_header(blob: Path, *, limits: RamsnapLimits = DEFAULT_LIMITS) -> RamsnapHeader:
    """The header of a blob; as :func:`read_index`."""
    return read_index(blob, limits=limits).header


def open_blob(blob: Path) -> int:
    """A descriptor for reading. Raises BlobNotFound, PermissionMissing, HostLimit."""
    try:
        return os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BlobNotFound(f"{blob} is not there", path=str(blob)) from error
    except OSError as error:
        raise explain(error, blob) from error


def head_bytes(descriptor: bytes, limits: RamsnapLimits) -> int:
    """How long the header frame is, by its first ``DESCRIPTOR_BYTES``. Raises SizeMismatch, CorruptRamsnap."""
    if len(descriptor) < DESCRIPTOR_BYTES:
        raise SizeMismatch("the ramsnap ends within its header")
    payload_bytes = header_payload_bytes(descriptor)
    if payload_bytes > limits.max_header_bytes:
        raise CorruptRamsnap(f"the header claims {payload_bytes} bytes, {limits.max_header_bytes} are allowed")
    return header_frame_bytes(payload_bytes)


def parse_head(frame: bytes, limits: RamsnapLimits) -> RamsnapIndex:
    """What a complete header frame says. Raises CorruptRamsnap, Unsupported."""
    return parse_index(decode_header_frame(frame), header_frame_bytes=len(frame), limits=limits)


def check_length(blob_bytes: int, index: RamsnapIndex) -> None:
    """Raise SizeMismatch unless a blob is exactly as long as its frames."""
    if blob_bytes != index.blob_bytes:
        raise SizeMismatch(
            f"the ramsnap has {blob_bytes} bytes, its frames {index.blob_bytes}",
            expected_bytes=index.blob_bytes,
            actual_bytes=blob_bytes,
        )
