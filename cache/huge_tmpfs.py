"""A tmpfs of our own whose files may have huge pages where that is asked for, mounted over an empty directory.

``huge=advise``: a file gets them where a mapping of it was advised so (``MADV_HUGEPAGE``), as those of RAM images are
where they are dense; the RAM of a booting guest does not become 2 MiB at each first touch. Filling 1 GiB then takes 512
page faults instead of 262,144, and so does locking it.

The mount stays when the daemon ends, as the files in it do: machines have them mapped, and the next daemon finds them.
It goes with the last of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

HUGE_PAGE_BYTES: Final = 2 << 20

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_SOURCE: Final = b"ovms-images"
_WITH_HUGE_PAGES: Final = frozenset({"huge=advise", "huge=always", "huge=within_size"})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def mount(directory: Path, *, beside: str | None = None) -> bool:
    """Mount it over an empty directory, as large as the file system that is there now; False: it is a mount point.

    ``beside``: the name of a file that may be there. Raises OSError: EPERM without the privilege, ENOTEMPTY if the
    directory is in use, EINVAL if the kernel has no huge pages for tmpfs.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.is_mount():
        return False
    if any(path.name != beside for path in directory.iterdir()):
        raise OSError(errno.ENOTEMPTY, "it is in use without them", str(directory))
    there = os.statvfs(directory)
    options = f"huge=advise,mode=0700,uid={os.geteuid()},gid={os.getegid()},size={there.f_blocks * there.f_frsize}"
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if _libc.mount(_SOURCE, os.fsencode(directory), b"tmpfs", flags, options.encode()):
        raise _os_error(directory)
    return True


def unmount(directory: Path, *, beside: str | None = None) -> bool:
    """Undo :func:`mount`, if it is ours, has no file but ``beside`` in it, and nobody works there. Whether it is gone.

    Raises OSError if the directory can't be looked at.
    """
    if not any(described.endswith(f" {_SOURCE.decode()}") for described, _ in _mounts(directory)):
        return False
    if any(name != beside for _, _, files in os.walk(directory) for name in files):
        return False
    return bool(_libc.umount2(os.fsencode(directory), 0) == 0)


def has_huge_pages(path: Path) -> bool:
    """Whether files there get huge pages, at least where they are asked for. Raises OSError."""
    return any(_WITH_HUGE_PAGES & set(options.split(",")) for _, options in _mounts(path))


def _mounts(path: Path) -> list[tuple[str, str]]:
    """Of the file system that the path is on: type and source, and its options (proc_pid_mountinfo(5))."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        own, _, rest = line.partition(" - ")
        if own.split(" ", 3)[2] == number:
            described, _, options = rest.rpartition(" ")
            found.append((described, options))
    return found


def _os_error(path: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(path))
