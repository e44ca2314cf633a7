"""Directories that another daemon has, that are read-only or full: clear errors, and nobody is harmed."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Ovm


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    directory = tmp_path / "place"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(directory)]
    if os.geteuid() or subprocess.run(command, check=False, timeout=30).returncode:
        pytest.skip("no mount here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True, timeout=30)


@pytest.fixture
def packed(ovm: Ovm, guest_kernel: Path, place: Path) -> Ovm:
    """A store on that file system."""
    ovm.root = place / "root"
    ovm.environment["OVMS_ROOT"] = str(ovm.root)
    ovm.ok("pack", "-t", "demo:base", "--kernel", str(guest_kernel), "--memory=32M")
    return ovm


def test_a_second_daemon_on_a_store_is_refused_wherever_it_runs(ovm: Ovm, tmp_path: Path) -> None:
    pid = int(ovm.ok("serve", "--detach"))
    try:
        result = ovm("--run-dir", str(tmp_path / "other"), "serve", "--format=json")
        assert result.code == 1
        assert result.problem["code"] == "daemon.running"
        assert f"pid {pid}" in result.problem["detail"]
        assert str(ovm.root) in result.problem["detail"]
        detached = ovm("--run-dir", str(tmp_path / "other"), "serve", "--detach")
        assert detached.code == 1
        assert str(ovm.root) in detached.err
        assert not (tmp_path / "other" / "ovms.sock").exists()
        assert ovm.json("version")["daemon"] is not None, "the first one is not disturbed"
    finally:
        ovm.ok("serve", "--stop")


def test_a_read_only_store_is_told(packed: Ovm, place: Path, guest_kernel: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True, timeout=30)
    for words in (
        ("pack", "-t", "demo:more", "--kernel", str(guest_kernel)),
        ("rmi", "demo:base"),
        ("prune",),
        ("serve",),
    ):
        result = packed(*words, "--format=json")
        assert (result.code, result.problem["code"]) == (1, "permission.missing"), (words, result.err)
        assert str(place) in result.problem["detail"]


def test_a_full_store_is_told_and_can_be_emptied(packed: Ovm, place: Path, guest_kernel: Path) -> None:
    packed.ok("serve", "--detach")
    try:
        with (place / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        result = packed("pack", "-t", "demo:more", "--kernel", str(guest_kernel), "--memory=64M", "--format=json")
        assert (result.code, result.problem["code"]) == (1, "host.no_space"), result.err
        result = packed("run", "demo:base", "--format=json")
        assert (result.code, result.problem["code"]) == (125, "host.no_space"), result.err
        assert packed.json("ps", "-a") == []
        packed.ok("prune")
        (place / "fill").unlink()
        machine = packed.ok("run", "demo:base").strip()
        packed.ok("rm", "-f", machine)
    finally:
        packed.ok("serve", "--stop")
