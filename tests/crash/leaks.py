"""Everything on this host that is of a site and that no machine accounts for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ovms_supervisor.instance import journal
from ovms_supervisor.instance.process_identity import processes_of
from spec.api import ImageInfo
from spec.errors import OvmsError
from spec.instance import InstanceInfo, is_live
from tests.supervisor.conftest import KEPT

Inode = tuple[int, int]


def leaks(directory: Path, daemon_pid: int | None, instances: list[InstanceInfo], images: list[ImageInfo]) -> list[str]:
    """``instances`` with the parked ones; without a daemon there is to be none but those whose VMMs run."""
    listed = {each.instance_id: each for each in instances}
    live = {key: each for key, each in listed.items() if is_live(each.status)}
    root, run, image_dir = directory / "root", directory / "run", directory / "images"
    left = _processes(directory, daemon_pid, {each.pid for each in live.values() if each.pid})
    for parent in (image_dir / "instances", root / "instances"):
        for path in _entries(parent):
            if path.name not in live:
                left.append(f"{path} is of no live machine")
            elif pid := live[path.name].pid:
                left += _unused(path, pid)
    for path in _entries(run / "instances"):
        names = {entry.name for entry in _entries(path)} - KEPT
        if path.name not in listed:
            left.append(f"{path} is of no machine")
        elif path.name not in live or any(name.endswith(".new") for name in names):
            left += [str(path / name) for name in names]
    for place in (image_dir / ".staging", root / "storing", root / "ovms.blobs" / "tmp"):
        left += [str(path) for path in _entries(place)]
    for path in _entries(root / "ovms.blobs" / "claims"):
        owner = path.stem.removeprefix("instance-")
        if owner not in listed and not owner.startswith("disk-"):
            left.append(f"claim {path.name}")
    left += _mounts(directory) + _references(run, live, images)
    if daemon_pid is not None:
        left += _locked(daemon_pid, images)
    return left


def _processes(directory: Path, daemon_pid: int | None, vmms: set[int]) -> list[str]:
    left = [
        f"VMM {pid} of {owner}" for pid, owner in processes_of(directory / "run/instances").items() if pid not in vmms
    ]
    prefix = os.fsencode(directory) + b"/"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in {os.getpid(), daemon_pid, *vmms}:
            continue
        with suppress(OSError):  # gone meanwhile
            mine = prefix in (entry / "cmdline").read_bytes() or ((entry / "fd/2").readlink().is_relative_to(directory))
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if mine and int(parent) != daemon_pid:
                left.append(f"process {entry.name}: {(entry / 'cmdline').read_bytes()[:200]!r}")
    return left


def _unused(directory: Path, pid: int) -> list[str]:
    """Files of a machine that its VMM has neither open nor mapped."""
    used = _inodes(pid)
    if not used:
        return []  # it has just ended
    left = []
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            figures = path.stat()
            if path.is_file() and (figures.st_dev, figures.st_ino) not in used:
                left.append(f"{path} is not used by VMM {pid}")
    return left


def _inodes(pid: int) -> set[Inode]:
    found: set[Inode] = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                figures = entry.stat()
                found.add((figures.st_dev, figures.st_ino))
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            _, _, _, device, inode, *_ = line.split()
            major, minor = device.split(":")
            found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    except OSError:
        return set()
    return found


def _mounts(directory: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {path}" for path in (line.split()[4] for line in lines) if path.startswith(str(directory) + "/")]


def _references(run: Path, live: dict[str, InstanceInfo], images: list[ImageInfo]) -> list[str]:
    """Each image has as many users as there are machines that map it."""
    users: dict[str, int] = {}
    for key in live:
        with suppress(OvmsError):
            image = journal.read(run / "instances" / key / "journal.json").image
            if image is not None:
                users[image] = users.get(image, 0) + 1
    counted = {each.digest: each.users for each in images if each.users}
    return [] if users == counted else [f"images are used by {users}, and the daemon counts {counted}"]


def _locked(daemon_pid: int, images: list[ImageInfo]) -> list[str]:
    told = sum(each.locked_bytes for each in images)
    for line in Path(f"/proc/{daemon_pid}/status").read_text().splitlines():
        if line.startswith("VmLck:") and int(line.split()[1]) * 1024 != told:
            return [f"the daemon has {line.split()[1]} KiB locked and tells of {told} bytes"]
    return []


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.exists() else []
