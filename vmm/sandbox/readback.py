"""What a process is confined by, read from /proc: what the kernel says, not what was asked for.

Landlock alone shows nowhere in /proc: that it holds is known from the launcher, which would have told otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spec.errors import VmmExited
from vmm.sandbox.kernel import NAMESPACES

_SECCOMP_FILTER: Final = "2"
_STATUS = re.compile(r"^(\w+):\t(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of confinement: what the kernel says of it, and whether that is what it should be."""

    name: str
    holds: bool
    detail: str


def read_layers(
    pid: int,
    *,
    image: Path | None = None,
    told_missing: Collection[tuple[str, str]] = (),
    confined: bool = True,
) -> list[Layer]:
    """All layers of a VMM process. Blocks (some ten small reads).

    ``image``: a RAM image that others map too, which it must not be able to write to. ``told_missing``: what the
    launcher could not do; ``confined``: whether it was started by the launcher at all. Raises VmmExited.
    """
    proc = Path(f"/proc/{pid}")
    try:
        status = dict(_STATUS.findall((proc / "status").read_text()))
        layers = [_namespace(proc, name) for name in sorted(NAMESPACES) if name != "user"]
        layers.append(_identity(proc, status))
        mounts = _mounts(proc)
        layers.append(_view(mounts))
        if image is not None:
            layers.append(_image(mounts, image))
        layers.append(_empty("capabilities", status, "CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"))
        layers.append(Layer("no_new_privileges", status["NoNewPrivs"] == "1", f"NoNewPrivs {status['NoNewPrivs']}"))
        layers.append(_seccomp(proc))
        layers.append(_landlock(dict(told_missing), confined))
        layers.append(_limits(proc))
        layers.append(_oom_score(proc))
    except (FileNotFoundError, ProcessLookupError, KeyError) as error:
        raise VmmExited(f"process {pid} ended while its confinement was read", pid=pid) from error
    return layers


def _namespace(proc: Path, name: str) -> Layer:
    its, ours = ((place / "ns" / name).readlink() for place in (proc, Path("/proc/self")))
    return Layer(name, its != ours, str(its))


def _identity(proc: Path, status: dict[str, str]) -> Layer:
    """A user of its own, or a user namespace in which it is nobody else."""
    uids = set(status["Uid"].split())
    if uids != {str(os.getuid())}:
        return Layer("user", "0" not in uids and len(uids) == 1, f"uid {'/'.join(sorted(uids))}")
    its, ours = ((place / "ns" / "user").readlink() for place in (proc, Path("/proc/self")))
    return Layer("user", its != ours, str(its))


def _mounts(proc: Path) -> dict[str, tuple[str, list[str]]]:
    """By mount point, the topmost: type of the file system, options of the mount (proc_pid_mountinfo(5))."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in (proc / "mountinfo").read_text().splitlines():
        fields, _, filesystem = line.partition(" - ")
        parts = fields.split()
        point = parts[4].encode().decode("unicode_escape")
        found[point] = (filesystem.split()[0], parts[5].split(","))
    return found


def _view(mounts: dict[str, tuple[str, list[str]]]) -> Layer:
    """Its root is a tmpfs, read-only: then everything else in it was put there."""
    kind, options = mounts.get("/", ("nothing", []))
    return Layer("view", kind == "tmpfs" and "ro" in options, f"root: {kind}, {','.join(options)}")


def _image(mounts: dict[str, tuple[str, list[str]]], image: Path) -> Layer:
    """The file, or a directory above it, is mounted read-only."""
    for place in (image, *image.parents):
        if str(place) in mounts:
            options = mounts[str(place)][1]
            sealed = "ro" in options and str(place) != "/"
            return Layer("image", sealed, "read-only" if sealed else "QEMU before 8.2 has to open it for writing")
    return Layer("image", False, "not in its view")


def _empty(name: str, status: dict[str, str], *fields: str) -> Layer:
    held = {field: status[field] for field in fields if int(status[field], 16)}
    return Layer(name, not held, "none" if not held else ", ".join(f"{field} {value}" for field, value in held.items()))


def _seccomp(proc: Path) -> Layer:
    """Cloud Hypervisor filters each thread by itself, and its main thread last: any thread with one will do."""
    modes = [_thread_seccomp(task) for task in (proc / "task").iterdir()]
    filtered = modes.count(_SECCOMP_FILTER)
    return Layer("seccomp", filtered > 0, f"{filtered} of {len(modes)} threads filtered")


def _thread_seccomp(task: Path) -> str:
    try:
        status: dict[str, str] = dict(_STATUS.findall((task / "status").read_text()))
    except (FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
        return ""
    return status.get("Seccomp", "")


def _landlock(missing: dict[str, str], confined: bool) -> Layer:
    if not confined:
        return Layer("landlock", False, "not asked for")
    return Layer("landlock", "landlock" not in missing, missing.get("landlock", "restricted before its start"))


def _limits(proc: Path) -> Layer:
    core = _field((proc / "limits").read_text(), "Max core file size")
    return Layer("limits", core == "0", f"core file {core} bytes")


def _field(text: str, name: str) -> str:
    """The hard limit of a row of /proc/PID/limits."""
    line = next((each for each in text.splitlines() if each.startswith(name)), "")
    parts = line.removeprefix(name).split()
    return parts[1] if len(parts) > 1 else "unknown"


def _oom_score(proc: Path) -> Layer:
    score = int((proc / "oom_score_adj").read_text())
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    return Layer("oom", score > ours, f"oom_score_adj {score}, the daemon's {ours}")
