"""Huge pages for RAM images, if the settings ask for them: ``image_dir`` is given a tmpfs of its own.

The lock of the daemon lies in that directory. The one beside the mount keeps others from mounting there, too; a second
one, inside, is what the next daemon finds.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

import structlog

from cache import huge_tmpfs
from ovms_supervisor.directory_lock import locked
from spec.instance import Degradation

IMAGES_LOCK = "daemon.lock"

_log = structlog.get_logger(__name__)


def mount_images(image_dir: Path, locks: ExitStack) -> list[Degradation]:
    """Mount it, unless it is mounted; what users of images are to be told if that can't be done. Blocks.

    ``locks`` has the lock of the directory, and gets that of the new one.
    """
    try:
        if huge_tmpfs.mount(image_dir, beside=IMAGES_LOCK):
            locks.enter_context(locked((image_dir / IMAGES_LOCK,)))
    except OSError as error:
        detail = f"{image_dir} gets no tmpfs with huge pages: {error.strerror}"
        _log.warning("no huge pages", why=detail)
        return [Degradation(code="huge_pages.unavailable", detail=detail)]
    return []


def unmount_images(image_dir: Path) -> None:
    """Unmount it, unless something is left there that the next daemon is to find. Blocks."""
    with suppress(OSError):
        huge_tmpfs.unmount(image_dir, beside=IMAGES_LOCK)
