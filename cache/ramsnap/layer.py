"""The files of an image of a parent, which become those of a layer: its pages over those, its state instead of that."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from cache.durable import write_all
from cache.host_errors import host_errors
from cache.punch_hole import punch_hole
from cache.ramsnap.encoder import without_zero_pages
from cache.ramsnap.image_files import RAM_NAME, STATE_NAME, check_state
from spec.digest import Digest
from spec.errors import CorruptRamsnap, DigestMismatch
from spec.ramsnap import FRAME_BYTES, FrameRecord, RamsnapHeader, RamsnapIndex, page_runs
from spec.sizes import PAGE_BYTES


class LayeredFiles:
    """Where the decoded frames of a layer go. Several threads may write different frames.

    The directory holds the image of the layer's parent, and is good for nothing until :meth:`finish` has returned.
    """

    def __init__(self, image: Path, index: RamsnapIndex, parent: Digest) -> None:
        """Make room for the layer's state files and for its pages of zeros.

        Raises DigestMismatch (the layer is on another parent), CorruptRamsnap (another size of memory), NoSpace, …
        """
        _check_fits(index.header, image, parent)
        self._image = image
        self._header = index.header
        self._places: list[tuple[int, int]] = []
        """Descriptor and offset in the file, by the number of the frame."""
        state = image / STATE_NAME
        with host_errors(image), ExitStack() as opened:
            if state.exists():
                shutil.rmtree(state)
            state.mkdir(mode=0o755)
            for file in self._header.state:
                stream = opened.enter_context((state / file.name).open("xb", buffering=0))
                os.ftruncate(stream.fileno(), file.size)
                self._places.extend((stream.fileno(), at) for at in range(0, file.size, FRAME_BYTES))
            ram = opened.enter_context((image / RAM_NAME).open("r+b", buffering=0))
            self._places.extend((ram.fileno(), at) for at in range(0, self._header.memory_bytes, FRAME_BYTES))
            for (fd, start), frame in zip(self._places, index.frames, strict=True):
                if not frame.is_state and not frame.inherits:
                    punch_hole(fd, start, min(FRAME_BYTES, self._header.memory_bytes - start))
            self._open = opened.pop_all()

    def place(self, number: int, frame: FrameRecord) -> int | None:  # noqa: ARG002
        """None: everything passes through :meth:`write`, which looks for zeros."""
        return None

    def write(self, number: int, frame: FrameRecord, payload: memoryview) -> None:
        """Put the payload of a frame where it belongs. Raises NoSpace, HostLimit, …"""
        fd, start = self._places[number]
        with host_errors(self._image):
            if frame.is_state:
                write_all(fd, payload, start)
            else:
                _put_pages(fd, start, frame.pages, payload)

    def finish(self) -> None:
        """Check the digests of the state files and close everything. Raises DigestMismatch."""
        check_state(self._image / STATE_NAME, self._header)
        self._open.close()

    def discard(self) -> None:
        """Close everything; what is left is for the owner of the directory to remove."""
        self._open.close()


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
