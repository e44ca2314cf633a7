"""A deep chain of disk layers made into one image: some VMMs bound how deep a chain may be, and each layer costs reads.

It lies beside the layers, in ``ovms.blobs/disks/<chain id>-flat/``, is made once, and goes like them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from cache.chain_id import FLAT_SUFFIX
from cache.extracted import IMAGE, Made, extracted
from cache.store import Store
from spec.digest import Digest
from spec.errors import HostLimit, MissingTool, NoSpace
from spec.qcow2 import BackingFormat

_LIMIT_S: Final = 3600.0
_MESSAGE_CHARACTERS: Final = 500


def flat_disk(store: Store, top: Path, layer: Digest, disk_format: BackingFormat, virtual_size_bytes: int) -> Path:
    """The path of a qcow2 image with the content of a chain of extracted layers, whose topmost is the image ``top``.

    The chain has been checked, layer by layer. Raises MissingTool (qemu-img does it), NoSpace, HostLimit.
    """

    def make(image: Path) -> Made:
        _convert(top, disk_format, image)
        return Made(layer=layer, member=IMAGE, format="qcow2", virtual_size_bytes=virtual_size_bytes)

    directory = top.parent.with_name(top.parent.name + FLAT_SUFFIX)
    extracted(store, directory, make)
    return directory / IMAGE


def _convert(top: Path, disk_format: str, image: Path) -> None:
    tool = shutil.which("qemu-img")
    if tool is None:
        raise MissingTool(
            "qemu-img is missing, which makes one image of a deep chain of disk layers",
            remedy="Install qemu-utils, or run the artifact on qemu.",
        )
    command = [tool, "convert", "-f", disk_format, "-O", "qcow2", str(top), str(image)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise HostLimit(f"qemu-img took more than {_LIMIT_S:g} s to make one image of {top}") from error
    if done.returncode:
        said = done.stderr.strip()[-_MESSAGE_CHARACTERS:]
        kind = NoSpace if "No space left" in said else HostLimit
        raise kind(f"qemu-img cannot make one image of {top}: {said}", path=str(top))
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
