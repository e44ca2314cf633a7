"""What an error of the operating system means to a user, with the path it happened at."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spec.errors import FileMissing, HostLimit, InvalidInput, NoSpace, OvmsError, PermissionMissing

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})


@contextmanager
def host_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the code inside into an error of the tree that names the path it is about.

    Raises NoSpace, PermissionMissing, FileMissing, or HostLimit for everything else (an I/O error, too many files).
    """
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error


def explain(error: OSError, path: Path) -> OvmsError:
    """The error of the tree for one of the operating system; the error's own path is preferred to ``path``."""
    where = error.filename if isinstance(error.filename, str) else str(path)
    detail = f"{where}: {error.strerror or error}"
    if error.errno in _FULL:
        return NoSpace(detail, path=where)
    if error.errno in _DENIED:
        return PermissionMissing(detail, path=where)
    if error.errno in _MISSING:
        return FileMissing(detail, path=where)
    if error.errno in _DESCRIPTORS:
        return HostLimit(
            detail, remedy="Raise LimitNOFILE of the daemon, or stop instances.", path=where, errno=error.errno
        )
    return HostLimit(detail, path=where, errno=error.errno)


def open_regular(path: Path, *, follow_links: bool = True) -> int:
    """A descriptor for reading a plain file.

    A fifo or device in its place neither blocks nor is read. Raises FileMissing, PermissionMissing, InvalidInput.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise InvalidInput(f"{path} is not a regular file", path=str(path)) from error
        raise explain(error, path) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidInput(f"{path} is not a regular file", path=str(path))
    return fd
