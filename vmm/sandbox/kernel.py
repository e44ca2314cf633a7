"""System calls that Python has no function for. Standard library only: the launcher imports nothing else.

Numbers and structures are those of x86_64 (the one platform of OVMS v0.1), flags those of the kernel's headers.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

CLONE_PARENT: Final = 0x8000
CLONE_PIDFD: Final = 0x1000
NAMESPACES: Final = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
}
"""By their names in /proc/PID/ns."""

_SYS_CLONE: Final = 56
_SYS_PIVOT_ROOT: Final = 155
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_SYS_CLOSE_RANGE: Final = 436
_SYS_MOUNT_SETATTR: Final = 442
_SYS_LANDLOCK_CREATE: Final = 444
_SYS_LANDLOCK_ADD: Final = 445
_SYS_LANDLOCK_RESTRICT: Final = 446

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_MS_REC_PRIVATE: Final = 0x4000 | 0x40000
_MNT_DETACH: Final = 2
_CLOSE_RANGE_CLOEXEC: Final = 4

MOUNT_READ_ONLY: Final = 0x1
MOUNT_NOSUID: Final = 0x2
MOUNT_NODEV: Final = 0x4
MOUNT_NOEXEC: Final = 0x8

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24

_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the lock of the interpreter: a clone has one thread, this one
_libc.syscall.restype = ctypes.c_long


def clone(flags: int) -> tuple[int, int]:
    """Fork with flags: 0 and -1 in the child, its pid and pidfd in the parent.

    For a process of one thread. With CLONE_PARENT the child is our parent's, which then waits for it.
    """
    pidfd = ctypes.c_int(-1)
    exit_signal = 0 if flags & CLONE_PARENT else 17
    pid = _call(_SYS_CLONE, ctypes.c_ulong(flags | CLONE_PIDFD | exit_signal), 0, ctypes.byref(pidfd), 0, 0)
    return pid, pidfd.value if pid else -1


def unshare(flags: int) -> None:
    """Leave the namespaces of these flags for new ones."""
    if _libc.unshare(ctypes.c_int(flags)):
        _raise("unshare")


def make_mounts_private() -> None:
    """What is mounted from now on, here or elsewhere, is not seen elsewhere, or here."""
    if _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None):
        _raise("mount")


def copy_of_tree(path: str) -> int:
    """A descriptor of a detached bind mount of what is at a path, with the mounts below it."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    return _call(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)


def new_tmpfs(size_bytes: int) -> int:
    """A descriptor of a detached tmpfs, mode 0755."""
    context = _call(_SYS_FSOPEN, b"tmpfs", 1)
    try:
        for key, value in ((b"size", b"%d" % size_bytes), (b"mode", b"0755")):
            _call(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key, value, 0)
        _call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(_SYS_FSMOUNT, context, 1, 0)
    finally:
        os.close(context)


def set_mount_flags(tree: int, flags: int, *, below: bool = True) -> None:
    """Set ``MOUNT_*`` flags on a mount, and on all ``below`` it; those that are set stay."""
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    how = _AT_EMPTY_PATH | (_AT_RECURSIVE if below else 0)
    _call(_SYS_MOUNT_SETATTR, tree, b"", how, attributes, len(attributes))


def attach(tree: int, path: str) -> None:
    """Put a detached mount at a path."""
    _call(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(path), _MOVE_MOUNT_F_EMPTY_PATH)


def enter_root() -> None:
    """Make the mount at the working directory the root, and let the old one go."""
    _call(_SYS_PIVOT_ROOT, b".", b".")
    if _libc.umount2(b".", _MNT_DETACH):
        _raise("umount2")
    os.chdir("/")


def close_all_on_exec(first: int) -> None:
    """Let no descriptor from ``first`` on get into a program, whoever opened it and however."""
    _call(_SYS_CLOSE_RANGE, first, 0x7FFFFFFF, _CLOSE_RANGE_CLOEXEC)


def drop_capability_bounds() -> None:
    """No program that is executed from now on can have any capability."""
    capability = 0
    while _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            _raise("prctl(PR_CAPBSET_DROP)")
        capability += 1


def set_no_new_privileges() -> None:
    """No set-uid bit and no file capability counts from now on."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        _raise("prctl(PR_SET_NO_NEW_PRIVS)")


def landlock_version() -> int:
    """The version of Landlock's interface; 0 where the kernel has none or it is off."""
    try:
        return _call(_SYS_LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def landlock_create(handled_fs: int) -> int:
    """A ruleset that forbids the accesses, but for what is added to it."""
    attributes = struct.pack("=Q", handled_fs)
    return _call(_SYS_LANDLOCK_CREATE, attributes, len(attributes), 0)


def landlock_allow(ruleset: int, path: str, access: int) -> None:
    """Allow accesses to a path and what is beneath it."""
    below = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _call(_SYS_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", access, below), 0)
    finally:
        os.close(below)


def landlock_restrict(ruleset: int) -> None:
    """Hold ourselves to a ruleset for good. Needs no_new_privs."""
    _call(_SYS_LANDLOCK_RESTRICT, ruleset, 0)


def _call(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        _raise(f"syscall {number}")
    return result


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
