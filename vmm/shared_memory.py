"""Files behind ivshmem devices: the host's end of a memory that the guest sees as PCI BAR 2.

The guest maps the file shared, so a plain read or write here is what the guest sees or wrote, without its taking part.
Everything here blocks (on tmpfs: microseconds).
"""

from __future__ import annotations

import os
from pathlib import Path

from spec.errors import InvalidSize, NoSpace, OutOfRange
from spec.sizes import is_power_of_two


def create(path: Path, size_bytes: int) -> None:
    """Make the file, zeroed, mode 0600; it must not exist. Raises InvalidSize, NoSpace.

    The pages are reserved: a tmpfs that fills up later must not kill the VMM that touches one.
    """
    if not is_power_of_two(size_bytes):
        raise InvalidSize(f"shared memory of {size_bytes} bytes: a PCI BAR has a power of two")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        path.unlink()
        raise NoSpace(f"no room for {size_bytes} bytes of shared memory at {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def read(path: Path, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset``. Raises OutOfRange."""
    fd = os.open(path, os.O_RDONLY)
    try:
        check_range(os.fstat(fd).st_size, offset, length)
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def write(path: Path, offset: int, data: bytes) -> None:
    """Put ``data`` at ``offset``, all of it or nothing. Raises OutOfRange."""
    fd = os.open(path, os.O_WRONLY)
    try:
        check_range(os.fstat(fd).st_size, offset, len(data))
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def check_range(size_bytes: int, offset: int, length: int) -> None:
    """Raise OutOfRange unless ``length`` bytes at ``offset`` lie within a device of that size."""
    if offset < 0 or length < 0 or offset + length > size_bytes:
        raise OutOfRange(
            f"{length} bytes at offset {offset} are not within the device's {size_bytes} bytes",
            offset=offset,
            length=length,
            size_bytes=size_bytes,
        )
