"""What the kernel says of this host's memory and mounts, as far as defaults depend on it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUP_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Filesystem:
    """The file system a path is (or would be) on; sizes in bytes."""

    kind: str
    """As in mountinfo: ``tmpfs``, ``ext4``, …; ``unknown`` if no mount has the path's device number."""
    mount_point: Path
    options: str
    """Of the super block, comma separated (``rw,size=…,huge=…``)."""
    size_bytes: int
    free_bytes: int

    @property
    def is_tmpfs(self) -> bool:
        """Whether files there are memory that can be mapped and shared."""
        return self.kind == "tmpfs"


def filesystem_of(path: Path) -> Filesystem:
    """The file system that ``path`` is on, or would be on once made (by its nearest existing parent)."""
    existing = path.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    device = existing.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    figures = os.statvfs(existing)
    kind, mount_point, options = "unknown", Path("/"), ""
    for line in _mountinfo():
        # proc_pid_mountinfo(5): id parent major:minor root mount-point options [optional…] - type source super-options
        before, _, after = line.partition(" - ")
        fields, last = before.split(" "), after.split(" ")
        if fields[2] == wanted and existing.is_relative_to(_unescape(fields[4])):
            kind, mount_point, options = last[0], Path(_unescape(fields[4])), last[2]
    return Filesystem(
        kind, mount_point, options, figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize
    )


def _mountinfo() -> list[str]:
    try:
        return (_PROC / "self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescape(field: str) -> str:
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        field = field.replace(code, character)
    return field


def meminfo() -> dict[str, int]:
    """``/proc/meminfo`` in bytes (page counts such as HugePages_Total as they are)."""
    figures: dict[str, int] = {}
    for line in (_PROC / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        number, *unit = rest.split()
        figures[name] = int(number) * (1024 if unit else 1)
    return figures


def memory_total_bytes() -> int:
    """The memory this process can have: the host's, or less if a cgroup (v2) above it says so."""
    total = meminfo()["MemTotal"]
    limit = _cgroup_memory_max()
    return total if limit is None else min(total, limit)


def _cgroup_memory_max() -> int | None:
    try:
        own = next(
            line.removeprefix("0::/")
            for line in (_PROC / "self/cgroup").read_text().splitlines()
            if line.startswith("0::/")
        )
    except (OSError, StopIteration):
        return None
    group = _CGROUP_MOUNT / own
    limits: list[int] = []
    while group.is_relative_to(_CGROUP_MOUNT):
        try:
            text = (group / "memory.max").read_text().strip()
        except OSError:
            text = "max"  # the root group has no such file
        if text != "max":
            limits.append(int(text))
        group = group.parent
    return min(limits, default=None)
