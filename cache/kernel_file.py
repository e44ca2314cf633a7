"""Whether a file can be booted: a Linux bzImage or a 64-bit x86 ELF."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from cache.host_errors import host_errors, open_regular
from spec.errors import InvalidInput

_BZIMAGE_MAGIC_AT: Final = 0x202
_BZIMAGE_MAGIC: Final = b"HdrS"
_ELF64_LITTLE_ENDIAN: Final = b"\x7fELF\x02\x01"
_MACHINE_AT: Final = 18
_X86_64: Final = 62


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
    if head.startswith(_ELF64_LITTLE_ENDIAN) and struct.unpack_from("<H", head, _MACHINE_AT)[0] == _X86_64:
        return
    raise InvalidInput(
        f"{path} is not a kernel: neither a Linux bzImage nor an x86-64 ELF",
        remedy="Give the file that a boot loader would load, for example /boot/vmlinuz-VERSION.",
        path=str(path),
    )
