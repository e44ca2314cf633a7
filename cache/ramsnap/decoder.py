"""From a ramsnap blob to RAM and state files: in one pass, in parallel, nothing left unless all of it holds.

:class:`RamsnapDecoder` is fed the blob's bytes in order, in pieces of any size, so that a file and a download are
decoded by the same code. The feeding thread hashes the whole; a bounded pool checks, decodes and writes the frames.
"""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from cache.ramsnap.image_files import ImageFiles
from cache.ramsnap.lz4_frame import (
    DESCRIPTOR_BYTES,
    FrameDecoder,
    decode_header_frame,
    header_frame_bytes,
    header_payload_bytes,
)
from cache.ramsnap.window import Window, default_threads
from spec.digest import Digest, digest_from_hash
from spec.errors import BlobNotFound, CorruptRamsnap, DigestMismatch, SizeMismatch, Unsupported
from spec.ramsnap import DEFAULT_LIMITS, FrameRecord, RamsnapHeader, RamsnapIndex, RamsnapLimits, parse_index


def read_index(blob: Path, *, limits: RamsnapLimits = DEFAULT_LIMITS) -> RamsnapIndex:
    """Header and frame table of a blob, consistent and within the limits, but not verified against any digest.

    Raises BlobNotFound, CorruptRamsnap, SizeMismatch (the file is not as long as its frames), Unsupported.
    """
    with _open_blob(blob) as stream:
        prefix = stream.read(DESCRIPTOR_BYTES)
        wanted = _header_frame_bytes(prefix, limits) - len(prefix)
        index = _parse_header(prefix + stream.read(wanted), limits)
        _check_length(os.fstat(stream.fileno()).st_size, index)
    return index


def read_header(blob: Path, *, limits: RamsnapLimits = DEFAULT_LIMITS) -> RamsnapHeader:
    """The header of a blob; as :func:`read_index`."""
    return read_index(blob, limits=limits).header


def decode(
    blob: Path,
    expected: Digest,
    destination: Path,
    *,
    limits: RamsnapLimits = DEFAULT_LIMITS,
    threads: int | None = None,
    stop: threading.Event | None = None,
) -> RamsnapHeader:
    """Decode a blob into ``destination/ram`` and ``destination/state/``; ``destination`` must not exist.

    The blob is read once. Its digest, every frame's digest and checksum, every size and the state files' digests hold
    when this returns; when it raises, ``destination`` is gone. Memory: about 16 MiB for each thread.

    Raises BlobNotFound, CorruptRamsnap, DigestMismatch, SizeMismatch, Unsupported, NoSpace, HostLimit, and
    concurrent.futures.CancelledError soon after ``stop`` is set.
    """
    with (
        _open_blob(blob) as stream,
        RamsnapDecoder(
            destination, blob_bytes=os.fstat(stream.fileno()).st_size, limits=limits, threads=threads
        ) as decoder,
    ):
        while decoder.wanted and (piece := stream.read(decoder.wanted)):
            decoder.feed(piece)
            if stop is not None and stop.is_set():
                raise CancelledError
        return decoder.finish(expected)


class RamsnapDecoder:
    """Decodes what it is fed. Leaving the context without :meth:`finish` having returned removes all it made."""

    def __init__(
        self,
        destination: Path,
        *,
        blob_bytes: int | None = None,
        limits: RamsnapLimits = DEFAULT_LIMITS,
        threads: int | None = None,
    ) -> None:
        """No I/O yet. ``blob_bytes``: the size of the blob where it is known; another one is refused at the header."""
        self.wanted = DESCRIPTOR_BYTES
        """How many bytes complete the next part; a piece of exactly so many is decoded without a copy. 0: all there."""
        self._destination = destination
        self._blob_bytes = blob_bytes
        self._limits = limits
        self._pending = bytearray()
        self._hash = hashlib.sha256()
        self._index: RamsnapIndex | None = None
        self._next_frame = 0
        self._files: ImageFiles | None = None
        self._window: Window[None] = Window(threads or default_threads(), name="ramsnap-decode")
        self._thread = threading.local()

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the blob. Blocks while the pool has enough to do (call it in a thread).

        Raises what :func:`decode` does; also for an earlier piece. After that only leaving the context makes sense.
        """
        self._hash.update(piece)
        at = 0
        while at < len(piece):
            if not self.wanted:
                raise SizeMismatch("the ramsnap goes on after its last frame")
            taken = piece if at == 0 and len(piece) == self.wanted else piece[at : at + self.wanted]
            at += len(taken)
            self.wanted -= len(taken)
            if self._pending or self.wanted:
                self._pending += taken
                if self.wanted:
                    return
                taken = bytes(self._pending)
                self._pending.clear()
            self._take_part(taken)

    def finish(self, expected: Digest) -> RamsnapHeader:
        """After the last byte: check that everything is there and holds; closes the files, which stay."""
        if self._index is None or self._files is None:
            raise SizeMismatch("the ramsnap ends within its header")
        if self.wanted:
            raise SizeMismatch(
                f"the ramsnap ends within frame {self._next_frame}, {self.wanted} bytes too early",
                frame=self._next_frame,
            )
        while len(self._window):
            self._window.take()
        actual = digest_from_hash(self._hash)
        if actual != expected:
            raise DigestMismatch(f"the ramsnap has {actual}, not {expected}", expected=expected, actual=actual)
        self._files.finish()
        self._files = None
        return self._index.header

    def close(self) -> None:
        """Wait for the pool and remove what was not finished."""
        self._window.close()
        if self._files is not None:
            self._files.discard()
            self._files = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_part(self, part: bytes) -> None:
        """The next part is complete: the header frame's descriptor, the header frame, or a data frame."""
        if self._index is not None:
            self._submit(self._index.frames[self._next_frame], part)
            self._next_frame += 1
        elif len(part) == DESCRIPTOR_BYTES:
            self._pending += part
            self.wanted = _header_frame_bytes(part, self._limits) - len(part)
            return
        else:
            self._index = _parse_header(part, self._limits)
            if self._blob_bytes is not None:
                _check_length(self._blob_bytes, self._index)
            if self._index.header.parent is not None:
                raise Unsupported("the ramsnap holds only what changed since another one")
            self._files = ImageFiles(self._destination, self._index.header)
        frames = self._index.frames
        while self._next_frame < len(frames) and not frames[self._next_frame].stored_bytes:
            self._next_frame += 1
        self.wanted = frames[self._next_frame].stored_bytes if self._next_frame < len(frames) else 0

    def _submit(self, frame: FrameRecord, stored: bytes) -> None:
        if self._window.full:
            self._window.take()
        self._window.submit(self._decode_frame, self._next_frame, frame, stored)

    def _decode_frame(self, number: int, frame: FrameRecord, stored: bytes) -> None:
        """In a thread of the pool."""
        assert self._files is not None  # noqa: S101 - frames come after the header
        if hashlib.sha256(stored).digest() != frame.digest:
            raise DigestMismatch(f"frame {number} of the ramsnap does not hash to its digest", frame=number)
        decoder: FrameDecoder | None = getattr(self._thread, "decoder", None)
        if decoder is None:
            decoder = self._thread.decoder = FrameDecoder()
        self._files.write(number, frame, decoder.decode(stored, frame.payload_bytes))


def _open_blob(blob: Path) -> BinaryIO:
    try:
        return blob.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise BlobNotFound(f"{blob} is not there", path=str(blob)) from error


def _header_frame_bytes(descriptor: bytes, limits: RamsnapLimits) -> int:
    if len(descriptor) < DESCRIPTOR_BYTES:
        raise SizeMismatch("the ramsnap ends within its header")
    payload_bytes = header_payload_bytes(descriptor)
    if payload_bytes > limits.max_header_bytes:
        raise CorruptRamsnap(f"the header claims {payload_bytes} bytes, {limits.max_header_bytes} are allowed")
    return header_frame_bytes(payload_bytes)


def _parse_header(frame: bytes, limits: RamsnapLimits) -> RamsnapIndex:
    return parse_index(decode_header_frame(frame), header_frame_bytes=len(frame), limits=limits)


def _check_length(blob_bytes: int, index: RamsnapIndex) -> None:
    if blob_bytes != index.blob_bytes:
        raise SizeMismatch(
            f"the ramsnap has {blob_bytes} bytes, its frames {index.blob_bytes}",
            expected_bytes=index.blob_bytes,
            actual_bytes=blob_bytes,
        )
