"""What happens in the new process between clone and exec: one layer after the other, from the outside in.

Standard library only. The order matters: limits and score while /proc is there, the view before the uid that could not
make it, privileges last. A layer that fails is told through the pipe; unless the order is strict, the next one follows.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import stat
from collections.abc import Callable
from typing import Final

from vmm.sandbox import kernel
from vmm.sandbox.orders import Order

_ROOT_BYTES: Final = 1 << 20  # of mount points and device nodes
_PLACE: Final = "/tmp"  # where the new root is put for a moment, in a mount namespace of our own

_LANDLOCK_READ: Final = 0x4 | 0x8
_LANDLOCK_EXECUTE: Final = 0x1
_LANDLOCK_WRITE_FILE: Final = 0x2
_LANDLOCK_TRUNCATE: Final = 1 << 14
_LANDLOCK_IOCTL: Final = 1 << 15
_LANDLOCK_FILE: Final = 0x1 | 0x2 | 0x4 | _LANDLOCK_TRUNCATE | _LANDLOCK_IOCTL
_LANDLOCK_HANDLED: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Accesses to files that each version of the interface knows of."""

_OUTSIDE: Final = (os.getuid(), os.getgid())
"""Taken by the launcher: in a new user namespace we are nobody until we are mapped."""

Remark = tuple[str, str]
"""A layer, and why it could not be had."""


def become(order: Order, fds: list[int], pipe: int, wait: int) -> list[Remark]:
    """Confine this process and make it ready to execute the program; returns the layers that could not be had.

    ``fds`` are the descriptors to have as 0, 1, 2, then as ``order.fds``; ``pipe`` stays open until the exec. Goes on
    only if something is written to ``wait``.
    Raises OSError for what cannot be done without, or, for a strict order, any layer.
    """
    os.setsid()
    _reset_signals()
    remarks: list[Remark] = []
    if "user" in order.namespaces:
        _map_ourselves()
    _try("limits", order, remarks, _set_limits)
    _try("oom", order, remarks, _set_oom_score)
    if "uts" in order.namespaces:
        _try("uts", order, remarks, lambda _: socket.sethostname("ovms"))
    if "mnt" in order.namespaces:
        _enter_view(order)
    _try("capabilities", order, remarks, lambda _: kernel.drop_capability_bounds())
    if order.uid is not None:
        os.setgroups([])
        os.setresgid(order.uid, order.uid, order.uid)
        os.setresuid(order.uid, order.uid, order.uid)
    kernel.set_no_new_privileges()
    if order.landlock and "mnt" in order.namespaces:
        _try("landlock", order, remarks, _restrict_files)
    if not os.read(wait, 1):
        raise OSError(0, "the launcher or the daemon ended before the daemon knew of this process")
    _arrange(fds, order.fds, pipe)
    return remarks


def _try(layer: str, order: Order, remarks: list[Remark], step: Callable[[Order], None]) -> None:
    try:
        step(order)
    except (OSError, ValueError) as error:
        if order.strict:
            raise OSError(getattr(error, "errno", None) or 0, f"{layer}: {error}") from error
        remarks.append((layer, str(error)))


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _map_ourselves() -> None:
    """In a user namespace we are who we were, and nobody else is anybody."""
    uid, gid = _OUTSIDE
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _set_limits(order: Order) -> None:
    for name, value in order.limits.items():
        number: int = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (limit, limit))


def _set_oom_score(order: Order) -> None:
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    try:
        os.write(fd, str(order.oom_score_adj).encode())
    finally:
        os.close(fd)


def _enter_view(order: Order) -> None:
    """A root of our own in which nothing is but what the order names, each under its own path."""
    kernel.make_mounts_private()
    plain = kernel.MOUNT_NOSUID | kernel.MOUNT_NODEV
    sealed = plain | kernel.MOUNT_READ_ONLY
    trees: list[tuple[str, int]] = []
    links: list[tuple[str, str]] = []
    for path in order.programs:
        if os.path.islink(path):  # /lib -> usr/lib
            links.append((path, os.readlink(path)))
        elif os.path.exists(path):
            trees.append((path, _tree(path, sealed)))
    trees += [(path, _tree(path, sealed | kernel.MOUNT_NOEXEC)) for path in order.read_only]
    trees += [(path, _tree(path, plain | kernel.MOUNT_NOEXEC)) for path in order.writable]
    nodes = [(path, os.stat(path)) for path in order.devices if os.path.exists(path)]
    if order.uid is None:  # who is not root makes no device nodes
        trees += [(path, _tree(path, kernel.MOUNT_NOSUID | kernel.MOUNT_NOEXEC)) for path, _ in nodes]
        nodes = []
    root = kernel.new_tmpfs(_ROOT_BYTES)
    kernel.attach(root, _PLACE)
    os.chdir(_PLACE)
    for path, target in links:
        os.makedirs(os.path.dirname(f".{path}"), exist_ok=True)
        os.symlink(target, f".{path}")
    for path, tree in sorted(trees, key=lambda each: each[0].count("/")):  # a directory before what is in it
        _make_place(f".{path}", directory=stat.S_ISDIR(os.fstat(tree).st_mode))
        kernel.attach(tree, f".{path}")
        os.close(tree)
    before = os.umask(0)
    for path, status in nodes:
        os.makedirs(os.path.dirname(f".{path}"), mode=0o755, exist_ok=True)
        os.mknod(f".{path}", 0o600 | stat.S_IFCHR, status.st_rdev)
        if order.uid is not None:
            os.chown(f".{path}", order.uid, order.uid)
    os.umask(before)
    kernel.set_mount_flags(root, kernel.MOUNT_READ_ONLY | kernel.MOUNT_NOSUID | kernel.MOUNT_NOEXEC, below=False)
    os.close(root)
    kernel.enter_root()


def _tree(path: str, flags: int) -> int:
    tree = kernel.copy_of_tree(path)
    kernel.set_mount_flags(tree, flags)
    return tree


def _make_place(path: str, *, directory: bool) -> None:
    if os.path.lexists(path):
        return
    if directory:
        os.makedirs(path, mode=0o755)
    else:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _restrict_files(order: Order) -> None:
    version = kernel.landlock_version()
    if not version:
        raise OSError(0, "the kernel has no Landlock, or it is off")
    handled = _LANDLOCK_HANDLED[min(version, max(_LANDLOCK_HANDLED))]
    ruleset = kernel.landlock_create(handled)
    try:
        for paths, access in (
            (order.programs, _LANDLOCK_READ | _LANDLOCK_EXECUTE),
            (order.read_only, _LANDLOCK_READ),
            (order.writable, handled & ~_LANDLOCK_EXECUTE),
            (order.devices, _LANDLOCK_READ | _LANDLOCK_WRITE_FILE | _LANDLOCK_IOCTL),
        ):
            for path in paths:
                if os.path.exists(path):
                    allowed = access if os.path.isdir(path) else access & _LANDLOCK_FILE
                    kernel.landlock_allow(ruleset, path, allowed & handled)
        kernel.landlock_restrict(ruleset)
    finally:
        os.close(ruleset)


def _arrange(fds: list[int], numbers: list[int], pipe: int) -> None:
    """Give the descriptors their numbers; all others are closed at the exec."""
    kernel.close_all_on_exec(3)
    wanted = [0, 1, 2, *numbers]
    floor = max([pipe, *fds, *wanted]) + 1
    moved = [_copy(fd, floor) for fd in fds]
    if pipe in wanted:
        raise ValueError(f"descriptor {pipe} is taken")
    for fd, number in zip(moved, wanted, strict=True):
        os.dup2(fd, number, inheritable=True)


def _copy(fd: int, floor: int) -> int:
    """A copy of a descriptor at ``floor`` or above, close-on-exec."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)
