"""Whose the files of a confined VMM are. All of this blocks for microseconds a file, and needs root.

Files that a VMM writes to belong to its user for as long as it writes to them, in directories that do not: so it can
neither replace a file nor put a link in its place. What others rely on (a frozen RAM, a saved state) is taken back
first. Everything else is readable by all, in directories into which only the daemon, and a view, leads.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from spec.errors import VmmGarbage
from vmm.driver import Machine
from vmm.sandbox.orders import Order

_READABLE = 0o444
_MAX_STATE_BYTES = 256 << 20


def give_files(machine: Machine, uid: int) -> None:
    """Give the files that the machine writes to, to the user of its VMM. Those that are not there yet are left out."""
    written = [device.path for device in machine.devices]
    written += [disk.path for disk in machine.disks if not disk.read_only]
    if not machine.ram.private:
        written.append(machine.ram.path)
    for path in written:
        give(path, uid)


def open_up(order: Order, machine: Machine, *, writes_image: bool) -> None:
    """Let the user of a VMM read what it is to read, and pass through the directories of what it writes to."""
    for name in order.read_only:
        _add_mode(Path(name), 0o555 if Path(name).is_dir() else 0o444)
    for name in order.writable:
        if Path(name).is_dir():
            _add_mode(Path(name), 0o111)
    if writes_image and machine.ram.private:
        _add_mode(machine.ram.path, 0o666)  # that this is so shows in the layers that are missing


def _add_mode(path: Path, bits: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & bits != bits:
        path.chmod(mode | bits)


def give(path: Path, uid: int) -> None:
    """Give one file, if it is there."""
    try:
        os.chown(path, uid, uid, follow_symlinks=False)
    except FileNotFoundError:
        return


def take_back(path: Path) -> None:
    """Make a plain file ours, and one that nobody writes to from now on. Raises VmmGarbage if it is none."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise VmmGarbage(f"{path} is no plain file")
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, _READABLE)
    finally:
        os.close(fd)


def lend_directory(path: Path, uid: int) -> None:
    """Let a VMM make files in a directory of which nobody else has a file yet."""
    _add_mode(path.parent, 0o111)
    os.chown(path, uid, uid, follow_symlinks=False)


def take_directory_back(path: Path) -> None:
    """End the loan: nothing can be made or replaced there any more, and what was made is ours.

    Files are copied, because a VMM that goes on may have kept them open. Raises VmmGarbage for anything but plain files
    of a state's size, which nobody but a hostile VMM would make.
    """
    os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
    for entry in sorted(path.iterdir()):
        content = _content(entry)
        copy = entry.with_name(f".{entry.name}.ours")
        copy.write_bytes(content)
        copy.replace(entry)


def _content(entry: Path) -> bytes:
    try:
        fd = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:  # a symbolic link, or a socket
        raise VmmGarbage(f"the VMM left {entry.name!r} where its state was to be: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        figures = os.fstat(fd)
        if not stat.S_ISREG(figures.st_mode) or figures.st_size > _MAX_STATE_BYTES:
            raise VmmGarbage(f"the VMM left {entry.name!r} where its state was to be, no plain file of a state's size")
        return file.read(_MAX_STATE_BYTES)
