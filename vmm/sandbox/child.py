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
_PLACE: Final = "/sys"
"""Where the new root is put for a moment, in a mount namespace of our own: files of machines are nowhere below it."""

_PLAIN: Final = kernel.MOUNT_NOSUID | kernel.MOUNT_NODEV

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


def prepare(order: Order) -> list[Remark]:
    """Do what is the same for all orders of this form (:meth:`Order.form`), which may come later."""
    os.setsid()
    _reset_signals()
    remarks: list[Remark] = []
    if "user" in order.namespaces:
        _map_ourselves()
    if "uts" in order.namespaces:
        _try("uts", order, remarks, lambda _: socket.sethostname("ovms"))
    if "mnt" in order.namespaces:
        _begin_view(order)
    _try("capabilities", order, remarks, lambda _: kernel.drop_capability_bounds())
    return remarks


def become(order: Order, remarks: list[Remark], fds: list[int]) -> list[Remark]:
    """Confine this process, which is prepared, and make it ready to execute the program.

    ``fds`` are the descriptors to have as 0, 1, 2, then as ``order.fds``; all others are closed at the exec. Returns
    the layers that could not be had. Raises OSError for what cannot be done without, or, for a strict order, any layer.
    """
    if remarks and order.strict:
        raise OSError(0, ": ".join(remarks[0]))
    _try("limits", order, remarks, _set_limits)
    _try("oom", order, remarks, _set_oom_score)
    if "mnt" in order.namespaces:
        _enter_view(order)
    if order.uid is not None:
        os.setgroups([])
        os.setresgid(order.uid, order.uid, order.uid)
        os.setresuid(order.uid, order.uid, order.uid)
    kernel.set_no_new_privileges()
    if order.landlock and "mnt" in order.namespaces:
        _try("landlock", order, remarks, _restrict_files)
    _arrange(fds, order.fds)
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
    if order.niceness is not None:
        os.setpriority(os.PRIO_PROCESS, 0, order.niceness)
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


def _begin_view(order: Order) -> None:
    """A root of our own with programs and devices in it, at our working directory but not yet entered."""
    kernel.make_mounts_private()
    sealed = _PLAIN | kernel.MOUNT_READ_ONLY
    trees: list[tuple[str, int]] = []
    links: list[tuple[str, str]] = []
    for path in order.programs:
        if os.path.islink(path):  # /lib -> usr/lib
            links.append((path, os.readlink(path)))
        elif os.path.exists(path):
            trees.append((path, _tree(path, sealed)))
    nodes = [(path, os.stat(path)) for path in order.devices if os.path.exists(path)]
    if order.uid is None:  # who is not root makes no device nodes
        trees += [(path, _tree(path, kernel.MOUNT_NOSUID | kernel.MOUNT_NOEXEC)) for path, _ in nodes]
        nodes = []
    root = kernel.new_tmpfs(_ROOT_BYTES)
    kernel.attach(root, _PLACE)
    os.close(root)
    os.chdir(_PLACE)
    for path, target in links:
        os.makedirs(os.path.dirname(f".{path}"), exist_ok=True)
        os.symlink(target, f".{path}")
    _attach(trees)
    before = os.umask(0)
    for path, status in nodes:
        os.makedirs(os.path.dirname(f".{path}"), mode=0o755, exist_ok=True)
        os.mknod(f".{path}", 0o600 | stat.S_IFCHR, status.st_rdev)
    os.umask(before)


def _enter_view(order: Order) -> None:
    """Put in what this order names beside programs, each under its own path, and let nothing else be there."""
    sealed = _PLAIN | kernel.MOUNT_READ_ONLY
    trees = [(path, _tree(path, sealed | kernel.MOUNT_NOEXEC)) for path in order.read_only]
    trees += [(path, _tree(path, _PLAIN | kernel.MOUNT_NOEXEC)) for path in order.writable]
    _attach(trees)
    if order.uid is not None:
        for path in order.devices:
            if os.path.exists(f".{path}"):
                os.chown(f".{path}", order.uid, order.uid)
    root = os.open(".", os.O_PATH | os.O_CLOEXEC)
    kernel.set_mount_flags(root, kernel.MOUNT_READ_ONLY | kernel.MOUNT_NOSUID | kernel.MOUNT_NOEXEC, below=False)
    os.close(root)
    kernel.enter_root()


def _attach(trees: list[tuple[str, int]]) -> None:
    for path, tree in sorted(trees, key=lambda each: each[0].count("/")):  # a directory before what is in it
        _make_place(f".{path}", directory=stat.S_ISDIR(os.fstat(tree).st_mode))
        kernel.attach(tree, f".{path}")
        os.close(tree)


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


def _arrange(fds: list[int], numbers: list[int]) -> None:
    """Give the descriptors their numbers; all others are closed at the exec."""
    kernel.close_all_on_exec(3)
    wanted = [0, 1, 2, *numbers]
    moved = [out_of_the_way(fd, [*fds, *wanted]) for fd in fds]
    for fd, number in zip(moved, wanted, strict=True):
        os.dup2(fd, number, inheritable=True)


def out_of_the_way(fd: int, numbers: list[int]) -> int:
    """A copy of a descriptor, above all these numbers, close-on-exec."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max([2, *numbers]) + 1)
