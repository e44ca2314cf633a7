"""Many pages of another process at once: process_vm_readv(2), a thousand ranges a call, straight to their place."""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from collections.abc import Iterable
from typing import Final

_MOST_RANGES: Final = 1024
"""IOV_MAX."""
_MOST_BYTES: Final = 1 << 30
"""Of one range."""

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.argtypes = (ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong)
_readv.restype = ctypes.c_ssize_t


def read_ranges(pid: int, ranges: Iterable[tuple[int, int, int]]) -> None:
    """Copy ``(address there, address here, length)`` each.

    Raises OSError; with errno EFAULT also where a page here has no room to become one (a full tmpfs), or is not there.
    """
    there, here = array("Q"), array("Q")
    for source, target, length in ranges:
        for done in range(0, length, _MOST_BYTES):
            taken = min(length - done, _MOST_BYTES)
            there.extend((source + done, taken))
            here.extend((target + done, taken))
            if len(there) == 2 * _MOST_RANGES:
                _read(pid, there, here)
                del there[:], here[:]
    if there:
        _read(pid, there, here)


def _read(pid: int, there: array[int], here: array[int]) -> None:
    """One piece after another, should the kernel stop at its limit of 2 GiB a call."""
    while there:
        count = len(there) // 2
        copied = _readv(pid, here.buffer_info()[0], count, there.buffer_info()[0], count, 0)
        if copied < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        whole = 0
        while whole < len(there) and copied >= there[whole + 1]:
            copied -= there[whole + 1]
            whole += 2
        if not whole:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        del there[:whole], here[:whole]
