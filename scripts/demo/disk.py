"""The demo's disk: an ext4 file system as a qcow2 base, and a change to it as a qcow2 layer on top. Needs no root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SIZE = "64M"
APPLETS = ("sh", "cat", "dd", "devmem", "head", "kill", "mount", "od", "poweroff", "sleep", "sync", "tr")


def make_layers(busybox: Path, guest: Path, directory: Path) -> tuple[Path, Path]:
    """Make ``base.qcow2`` and ``diff.qcow2`` in ``directory``; the paths of both.

    The base has a shell and a service that only complains; the diff replaces the service and adds a file.
    """
    tree = directory / "tree"
    for name in ("bin", "sbin", "dev", "proc", "sys", "etc", "srv/demo", "var/lib/demo"):
        (tree / name).mkdir(parents=True)
    _install(busybox, tree / "bin/busybox")
    for applet in APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    _install(guest / "init", tree / "sbin/init")
    _install(guest / "service-base", tree / "srv/demo/service")
    (tree / "etc/layers").write_text("base\n")
    (tree / "var/lib/demo/record").write_bytes(b" " * 4095 + b"\n")

    raw = directory / "disk.raw"
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-d", tree, raw, SIZE)
    base = directory / "base.qcow2"
    _run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, base)

    layers = directory / "layers"
    layers.write_text("base\ndiff\n")
    changes = directory / "changes"
    changes.write_text(
        "rm /srv/demo/service\n"
        f"write {guest / 'service'} /srv/demo/service\n"
        "set_inode_field /srv/demo/service mode 0100755\n"
        "rm /etc/layers\n"
        f"write {layers} /etc/layers\n"
    )
    _run("debugfs", "-w", "-f", changes, raw)
    # An empty layer on the changed disk, moved onto the base: exactly the clusters that differ are copied into it.
    diff = directory / "diff.qcow2"
    _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", diff)
    _run("qemu-img", "rebase", "-q", "-f", "qcow2", "-b", base.name, "-F", "qcow2", diff, cwd=directory)
    shutil.rmtree(tree)
    for leftover in (raw, layers, changes):
        leftover.unlink()
    return base, diff


def _install(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    subprocess.run(command, check=True, cwd=cwd, env=environment, capture_output=True)
