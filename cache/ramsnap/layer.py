"""Putting a layer on the decoded image of its parent: its pages over those, its state files instead of those."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from concurrent.futures import CancelledError
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

from cache.durable import write_all
from cache.host_errors import host_errors, open_regular
from cache.punch_hole import punch_hole
from cache.ramsnap.encoder import without_zero_pages
from cache.ramsnap.image_files import RAM_NAME, STATE_NAME
from cache.ramsnap.lz4_frame import (
    DESCRIPTOR_BYTES,
    FrameDecoder,
    decode_header_frame,
    header_frame_bytes,
    header_payload_bytes,
)
from cache.ramsnap.window import Window, default_threads
from spec.digest import Digest, digest_from_hash
from spec.errors import CorruptRamsnap, DigestMismatch, SizeMismatch
from spec.ramsnap import FRAME_BYTES, FrameRecord, RamsnapHeader, RamsnapIndex, RamsnapLimits, page_runs, parse_index
from spec.sizes import PAGE_BYTES


def put_layer(
    blob: Path,
    expected: Digest,
    image: Path,
    *,
    parent: Digest,
    limits: RamsnapLimits,
    threads: int | None = None,
    stop: threading.Event | None = None,
) -> RamsnapHeader:
    """Turn the image of ``parent`` in the directory ``image`` into that of the layer.

    The image is as good as the layer's digest when this returns, and good for nothing when it raises: FileMissing,
    CorruptRamsnap (also: another size of memory), DigestMismatch (also: the layer is on another parent), SizeMismatch,
    Unsupported, NoSpace, HostLimit, and concurrent.futures.CancelledError soon after ``stop`` is set.
    """
    whole = hashlib.sha256()
    with ExitStack() as stack:
        stream = stack.enter_context(os.fdopen(open_regular(blob), "rb", buffering=0))
        index, head = _read_header(stream, limits)
        whole.update(head)
        _check_fits(index.header, image, parent)
        files = stack.enter_context(_LayeredFiles(image, index))
        window = stack.enter_context(Window[None](threads or default_threads(), name="ramsnap-layer"))
        for number, frame in enumerate(index.frames):
            if stop is not None and stop.is_set():
                raise CancelledError
            stored = _read(stream, frame.stored_bytes)
            whole.update(stored)
            if not stored and frame.inherits:
                continue
            if window.full:
                window.take()
            window.submit(files.put, number, frame, stored)
        while len(window):
            window.take()
        if stream.read(1):
            raise SizeMismatch("the ramsnap goes on after its last frame")
        actual = digest_from_hash(whole)
        if actual != expected:
            raise DigestMismatch(f"the ramsnap has {actual}, not {expected}", expected=expected, actual=actual)
        files.check_state()
        return index.header


class _LayeredFiles:
    """The files of an image that become those of a layer; several threads may put different frames."""

    def __init__(self, image: Path, index: RamsnapIndex) -> None:
        self._image = image
        self._header = index.header
        self._thread = threading.local()
        self._open = ExitStack()
        self._places: list[tuple[int, int]] = []
        """Descriptor and offset in the file, by the number of the frame."""

    def __enter__(self) -> Self:
        state = self._image / STATE_NAME
        with host_errors(self._image), ExitStack() as opened:
            if state.exists():
                shutil.rmtree(state)
            state.mkdir(mode=0o755)
            for file in self._header.state:
                stream = opened.enter_context((state / file.name).open("xb", buffering=0))
                os.ftruncate(stream.fileno(), file.size)
                self._places.extend((stream.fileno(), at) for at in range(0, file.size, FRAME_BYTES))
            ram = opened.enter_context((self._image / RAM_NAME).open("r+b", buffering=0))
            self._places.extend((ram.fileno(), at) for at in range(0, self._header.memory_bytes, FRAME_BYTES))
            self._open = opened.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def put(self, number: int, frame: FrameRecord, stored: bytes) -> None:
        """Decode a frame that was read, and write it where it belongs."""
        fd, start = self._places[number]
        with host_errors(self._image):
            if not frame.is_state and not frame.inherits:
                length = min(FRAME_BYTES, self._header.memory_bytes - start)
                punch_hole(fd, start, length)
            if stored:
                payload = self._decoded(number, frame, stored)
                if frame.is_state:
                    write_all(fd, payload, start)
                else:
                    _put_pages(fd, start, frame.pages, memoryview(payload))

    def check_state(self) -> None:
        """Raise DigestMismatch unless the state files are what the header says."""
        for file in self._header.state:
            with (self._image / STATE_NAME / file.name).open("rb") as stream:
                actual = digest_from_hash(hashlib.file_digest(stream, "sha256"))
            if actual != file.digest:
                raise DigestMismatch(f"state file {file.name!r} has {actual}, the header says {file.digest}")

    def _decoded(self, number: int, frame: FrameRecord, stored: bytes) -> bytes:
        if hashlib.sha256(stored).digest() != frame.digest:
            raise DigestMismatch(f"frame {number} of the ramsnap does not hash to its digest", frame=number)
        decoder: FrameDecoder | None = getattr(self._thread, "decoder", None)
        if decoder is None:
            decoder = self._thread.decoder = FrameDecoder()
        return decoder.decode(stored, frame.payload_bytes)


def _read_header(stream: BinaryIO, limits: RamsnapLimits) -> tuple[RamsnapIndex, bytes]:
    descriptor = _read(stream, DESCRIPTOR_BYTES)
    payload_bytes = header_payload_bytes(descriptor)
    if payload_bytes > limits.max_header_bytes:
        raise CorruptRamsnap(f"the header claims {payload_bytes} bytes, {limits.max_header_bytes} are allowed")
    head = descriptor + _read(stream, header_frame_bytes(payload_bytes) - DESCRIPTOR_BYTES)
    return parse_index(decode_header_frame(head), header_frame_bytes=len(head), limits=limits), head


def _read(stream: BinaryIO, size_bytes: int) -> bytes:
    content = stream.read(size_bytes) if size_bytes else b""
    while len(content) < size_bytes:
        piece = stream.read(size_bytes - len(content))
        if not piece:
            raise SizeMismatch(f"the ramsnap ends {size_bytes - len(content)} bytes too early")
        content += piece
    return content


def _put_pages(fd: int, start: int, pages: bytes, payload: memoryview) -> None:
    """Write runs of pages; those that are zero now become holes."""
    for page, count in page_runs(pages):
        at, content = start + page * PAGE_BYTES, bytes(payload[: count * PAGE_BYTES])
        payload = payload[count * PAGE_BYTES :]
        done = 0
        for first, length in page_runs(without_zero_pages(content)[1]):
            if first > done:
                punch_hole(fd, at + done * PAGE_BYTES, (first - done) * PAGE_BYTES)
            done = first + length
            write_all(fd, memoryview(content)[first * PAGE_BYTES : done * PAGE_BYTES], at + first * PAGE_BYTES)
        if done < count:
            punch_hole(fd, at + done * PAGE_BYTES, (count - done) * PAGE_BYTES)


def _check_fits(header: RamsnapHeader, image: Path, parent: Digest) -> None:
    if header.parent != parent:
        raise DigestMismatch(
            f"the ramsnap is a layer on {header.parent or 'nothing'}, not on {parent}", expected=parent
        )
    with host_errors(image):
        memory_bytes = (image / RAM_NAME).stat().st_size
    if header.memory_bytes != memory_bytes:
        raise CorruptRamsnap(f"a layer of {header.memory_bytes} bytes of RAM on an image of {memory_bytes}")
