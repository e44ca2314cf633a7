"""Whether a file can be booted: a Linux bzImage or a 64-bit x86 ELF."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cache.host_errors import host_errors, open_regular
from spec.errors import InvalidInput

_BZIMAGE_MAGIC_AT: Final = 0x202
_BZIMAGE_MAGIC: Final = b"HdrS"
_ELF64_LITTLE_ENDIAN: Final = b"\x7fELF\x02\x01"
_ELF_MACHINE: Final = slice(18, 20)
_X86_64: Final = b"\x3e\x00"


def check_kernel(path: Path) -> None:
    """Raise InvalidInput unless it looks like a kernel; FileMissing, PermissionMissing."""
    fd = open_regular(path)
    try:
        with host_errors(path):
            head = os.pread(fd, 1024, 0)
    finally:
        os.close(fd)
    if head[_BZIMAGE_MAGIC_AT:].startswith(_BZIMAGE_MAGIC):
        return
    if head.startswith(_ELF64_LITTLE_ENDIAN) and head[_ELF_MACHINE] == _X86_64:
        return
    raise InvalidInput(
        f"{path} is not a kernel: neither a Linux bzImage nor an x86-64 ELF",
        remedy="Give the file that a boot loader would load, for example /boot/vmlinuz-VERSION.",
        path=str(path),
    )
