"""Debian and Ubuntu packages as a source of files: fetched by apt, unpacked without installing, nothing needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

KERNELS = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64", "linux-image-generic")
"""In order of preference: Debian's kernel for virtual machines, Ubuntu's, the ones for any machine."""


class PackageError(Exception):
    """A package could not be had; the message says what to do."""


def kernel_package() -> str:
    """The package of the newest kernel for virtual machines: what the meta package of this system depends on."""

    def look() -> str | None:
        for meta in KERNELS:
            for line in _output("apt-cache", "depends", "--important", meta).splitlines():
                kind, _, name = line.strip().partition(": ")
                if kind == "Depends" and name.startswith("linux-image-") and "unsigned" not in name:
                    return name
        return None

    found = _try_twice(look)
    if found is None:
        raise PackageError(f"apt knows none of {', '.join(KERNELS)}: is this Debian or Ubuntu on amd64?")
    return found


def file_names(*packages: str) -> list[str]:
    """The names of the files that apt would fetch now; they have the versions in them."""

    def look() -> list[str] | None:
        lines = _output("apt-get", "download", "--print-uris", *packages).splitlines()
        return [line.split()[1] for line in lines] if len(lines) == len(packages) else None

    found = _try_twice(look)
    if found is None:
        raise PackageError(f"apt does not know all of {', '.join(packages)}")
    return found


def unpack(package: str, destination: Path) -> None:
    """Fetch a package and unpack it into the directory ``destination``, which is made."""
    destination.mkdir(parents=True)
    download = destination.with_name(destination.name + ".download")
    download.mkdir()
    command = ["apt-get", "download", "-q", package]
    if os.geteuid() == 0:
        command += ["-o", "APT::Sandbox::User=root"]  # its own user cannot write here

    def fetch() -> Path | None:
        subprocess.run(command, cwd=download, capture_output=True, check=False)
        return next(download.glob("*.deb"), None)

    try:
        deb = _try_twice(fetch)
        if deb is None:
            raise PackageError(f"apt could not download {package}: try 'apt-get download {package}' to see why")
        subprocess.run(["dpkg-deb", "-x", deb, destination], check=True)
    finally:
        shutil.rmtree(download)


def _try_twice(attempt: Callable[[], T | None]) -> T | None:
    """With ``apt-get update`` in between: the package lists may be missing (a fresh container) or stale."""
    found = attempt()
    if found is None:
        _update_lists()
        found = attempt()
    return found


@cache
def _update_lists() -> None:
    """Once per process is enough. What goes wrong shows in the attempt that follows."""
    command = ["apt-get", "update", "-q"]
    if os.geteuid() != 0:
        command = ["sudo", *([] if sys.stdin.isatty() else ["-n"]), *command]
    with suppress(FileNotFoundError):  # no sudo here
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    return done.stdout if done.returncode == 0 else ""
