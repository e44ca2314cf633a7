"""From a ramsnap blob to RAM and state files: in one pass, in parallel, nothing left unless all of it holds.

:class:`RamsnapDecoder` is given the blob's bytes in order, in pieces of any size, so that a file and a download are
decoded by the same code. The feeding thread hashes the whole; a bounded pool checks the frames and decodes them, into
their place in the image wherever their pages lie together.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cache.host_errors import host_errors
from cache.ramsnap.buffer import Buffer
from cache.ramsnap.crew import Crew
from cache.ramsnap.head import check_length, head_bytes, open_blob, parse_head
from cache.ramsnap.image_files import ImageFiles
from cache.ramsnap.layer import LayeredFiles
from cache.ramsnap.lz4_frame import DESCRIPTOR_BYTES, decode_frame
from cache.ramsnap.window import Window, default_threads
from spec.digest import Digest, digest_from_hash
from spec.errors import DigestMismatch, SizeMismatch, Unsupported
from spec.ramsnap import (
    DEFAULT_LIMITS,
    FRAME_BYTES,
    FRAME_OVERHEAD_BYTES,
    FrameRecord,
    RamsnapHeader,
    RamsnapIndex,
    RamsnapLimits,
)

_CREW: Final = Crew(default_threads(), name="ramsnap-decode")
_STORED_BYTES: Final = FRAME_BYTES + FRAME_OVERHEAD_BYTES
"""What a frame takes at most."""


def decode(
    blob: Path,
    expected: Digest,
    destination: Path,
    *,
    onto: Digest | None = None,
    limits: RamsnapLimits = DEFAULT_LIMITS,
    threads: int | None = None,
    stop: threading.Event | None = None,
) -> RamsnapHeader:
    """Decode a blob into ``destination/ram`` and ``destination/state/``; ``destination`` must not exist.

    With ``onto``, the blob is a layer, and ``destination`` holds the image of that parent, which becomes the layer's;
    it is left, good for nothing, when this raises (also DigestMismatch: the layer is on another parent).

    The blob is read once. Its digest, every frame's digest and checksum, every size and the state files' digests hold
    when this returns; when it raises, ``destination`` is gone. Memory: see :class:`RamsnapDecoder`.

    Raises BlobNotFound, CorruptRamsnap, DigestMismatch, SizeMismatch, Unsupported, NoSpace, HostLimit, and
    concurrent.futures.CancelledError soon after ``stop`` is set.
    """
    fd = open_blob(blob)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        size_bytes, at = os.fstat(fd).st_size, 0
        with RamsnapDecoder(destination, onto=onto, blob_bytes=size_bytes, limits=limits, threads=threads) as decoder:
            while room := decoder.room():
                with host_errors(blob):
                    length = os.preadv(fd, [room], at)
                if not length:
                    break
                decoder.filled(length)
                at += length
                if stop is not None and stop.is_set():
                    raise CancelledError
            return decoder.finish(expected)
    finally:
        os.close(fd)


class RamsnapDecoder:
    """Decodes what it is given. Leaving the context without :meth:`finish` having returned removes all it made.

    Memory, whatever the image: the header, and up to 4 MiB for each thread and for each of ``threads + 3`` frames under
    way. All that decode at the same time share one crew of threads, unless ``threads`` asks for some of its own. Pages
    of the image itself are mapped while they are filled; the kernel counts them as this process's too.
    """

    def __init__(
        self,
        destination: Path,
        *,
        onto: Digest | None = None,
        vouched: bool = False,
        admit: Callable[[RamsnapIndex], None] = lambda _: None,
        blob_bytes: int | None = None,
        limits: RamsnapLimits = DEFAULT_LIMITS,
        threads: int | None = None,
    ) -> None:
        """No I/O yet. ``onto``: as for :func:`decode`. ``vouched``: the caller hashes the whole itself, and calls
        :meth:`finish` only if the digest holds. ``admit`` is told what the header says before anything is made, and
        raises what speaks against it.

        ``blob_bytes``: the size of the blob where it is known; another one is refused at the header.
        """
        self.destination: Final = destination
        self._onto = onto
        self._blob_bytes = blob_bytes
        self._limits = limits
        self._admit = admit
        self._hash = None if vouched else hashlib.sha256()
        self._head = bytearray()
        self._index: RamsnapIndex | None = None
        self._next_frame = 0
        self._part: Buffer | None = None
        self._held = 0
        self._missing = DESCRIPTOR_BYTES
        """Bytes of the next part (descriptor or rest of the header frame, or a frame) that are here, and that are not
        here yet; 0: the blob is complete."""
        self._files: ImageFiles | LayeredFiles | None = None
        crew = _CREW if threads is None else Crew(threads, name="ramsnap-decode")
        self._window: Window[Buffer] = Window(crew.size, name="ramsnap-decode", executor=crew.join())
        self._free: list[Buffer] = []
        self._scratch: list[Buffer] = []

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next bytes of the blob; as :meth:`room` and :meth:`filled`, with a copy."""
        view = memoryview(piece)
        while view:
            room = self.room()
            if not room:
                raise SizeMismatch("the ramsnap goes on after its last frame")
            taken = min(len(room), len(view))
            room[:taken] = view[:taken]
            self.filled(taken)
            view = view[taken:]

    def room(self) -> memoryview:
        """Where the next bytes of the blob are to be written; empty if it is complete.

        Blocks while the pool has enough to do (call it in a thread). Raises what :func:`decode` does, for an earlier
        frame; after that only leaving the context makes sense.
        """
        if self._part is None:
            if not self._missing:
                return memoryview(b"")
            if self._window.full:
                self._free.append(self._window.take())
            self._part = self._free.pop() if self._free else Buffer(_STORED_BYTES)
        return self._part.view[self._held : self._held + min(self._missing, _STORED_BYTES - self._held)]

    def filled(self, length: int) -> None:
        """So many bytes were written to the :meth:`room`. Raises what :func:`decode` does."""
        assert self._part is not None  # noqa: S101 - a bug of the caller
        piece = self._part.view[self._held : self._held + length]
        if self._hash is not None:
            self._hash.update(piece)
        self._missing -= length
        if self._index is None:
            self._head += piece
            if not self._missing:
                self._take_head()
            return
        self._held += length
        if not self._missing:
            frame, part, self._part, self._held = self._index.frames[self._next_frame], self._part, None, 0
            self._window.submit(self._decode_frame, self._next_frame, frame, part)
            self._next_frame += 1
            self._expect_frame(self._index)

    def finish(self, expected: Digest) -> RamsnapHeader:
        """After the last byte: check that everything is there and holds; closes the files, which stay."""
        if self._index is None or self._files is None:
            raise SizeMismatch("the ramsnap ends within its header")
        if self._missing:
            raise SizeMismatch(
                f"the ramsnap ends within frame {self._next_frame}, {self._missing} bytes too early",
                frame=self._next_frame,
            )
        while len(self._window):
            self._window.take()
        if self._hash is not None and (actual := digest_from_hash(self._hash)) != expected:
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

    def _take_head(self) -> None:
        """The header frame's descriptor is here, or all of the header frame."""
        if len(self._head) == DESCRIPTOR_BYTES:
            self._missing = head_bytes(bytes(self._head), self._limits) - DESCRIPTOR_BYTES
            return
        index = parse_head(bytes(self._head), self._limits)
        self._head.clear()
        if self._blob_bytes is not None:
            check_length(self._blob_bytes, index)
        self._admit(index)
        if self._onto is not None:
            self._files = LayeredFiles(self.destination, index, self._onto)
        elif index.header.parent is None:
            self._files = ImageFiles(self.destination, index)
        else:
            raise Unsupported("the ramsnap holds only what changed since another one")
        self._index = index
        self._expect_frame(index)

    def _expect_frame(self, index: RamsnapIndex) -> None:
        """Go on to the next frame that is in the blob."""
        frames = index.frames
        while self._next_frame < len(frames) and not frames[self._next_frame].stored_bytes:
            self._next_frame += 1
        self._missing = frames[self._next_frame].stored_bytes if self._next_frame < len(frames) else 0
        if not self._missing:
            self._part = None

    def _decode_frame(self, number: int, frame: FrameRecord, stored: Buffer) -> Buffer:
        """In a thread of the pool; gives the buffer back."""
        assert self._files is not None  # noqa: S101 - frames come after the header
        if hashlib.sha256(stored.view[: frame.stored_bytes]).digest() != frame.digest:
            raise DigestMismatch(f"frame {number} of the ramsnap does not hash to its digest", frame=number)
        place = self._files.place(number, frame)
        if place is not None:
            decode_frame(stored, frame.stored_bytes, frame.payload_bytes, place)
            return stored
        scratch = self._scratch.pop() if self._scratch else Buffer(FRAME_BYTES)
        decode_frame(stored, frame.stored_bytes, frame.payload_bytes, scratch.address)
        self._files.write(number, frame, scratch.view[: frame.payload_bytes])
        self._scratch.append(scratch)
        return stored
