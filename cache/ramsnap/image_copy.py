"""A second RAM image with the same content, to put layers on. tmpfs has no reflinks: the pages are copied."""

from __future__ import annotations

import os
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Final

from cache.durable import write_all
from cache.extents import data_extents
from cache.host_errors import host_errors
from cache.ramsnap.window import Window, default_threads
from spec.ramsnap import FRAME_BYTES

_PIECE_BYTES: Final = 1 << 18
"""Fits into a processor's cache. copy_file_range takes longer on tmpfs, where it goes through a pipe page by page."""


def copy_image(
    source: Path,
    destination: Path,
    *,
    threads: int | None = None,
    niceness: int = 0,
    stop: threading.Event | None = None,
) -> None:
    """Copy a file to a new one, in parallel; holes stay holes.

    When it raises, ``destination`` is gone: FileMissing, NoSpace, HostLimit; concurrent.futures.CancelledError soon
    after ``stop`` is set.
    """
    with host_errors(source):
        source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with host_errors(destination):
            target_fd = os.open(destination, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                size_bytes = os.fstat(source_fd).st_size
                os.ftruncate(target_fd, size_bytes)
                with Window[None](threads or default_threads(), niceness=niceness, name="image-copy") as window:
                    for start, end in data_extents(source_fd, size_bytes):
                        for at in range(start, end, FRAME_BYTES):
                            if stop is not None and stop.is_set():
                                raise CancelledError
                            if window.full:
                                window.take()
                            window.submit(_copy, source_fd, target_fd, at, min(at + FRAME_BYTES, end))
                    while len(window):
                        window.take()
            except BaseException:
                destination.unlink(missing_ok=True)
                raise
            finally:
                os.close(target_fd)
    finally:
        os.close(source_fd)


def _copy(source: int, target: int, start: int, end: int) -> None:
    """In a thread of the pool."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    while start < end:
        read = os.preadv(source, [buffer[: end - start]], start)
        if not read:
            return  # the source was cut short: what is missing are zeros there, too
        write_all(target, buffer[:read], start)
        start += read
