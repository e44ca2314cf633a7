"""Overlays: real images by QEMU's own check, sparse, never over something that exists, nothing left by an error."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from spec.errors import FileMissing, InUse, NoSpace, OvmsError, PermissionMissing, UnsafeDisk
from spec.qcow2 import build_overlay_header
from spec.sizes import GIB, MIB
from vmm.overlays import create_overlay


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(b"the disk below".ljust(MIB, b"."))
    return path


def qemu(tool: str, *arguments: str | Path) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.mark.real
@pytest.mark.parametrize("virtual_size_bytes", [MIB, 3 * MIB + 512, 10 * GIB, 4096 * GIB])
def test_qemu_finds_no_fault(tmp_path: Path, base: Path, virtual_size_bytes: int) -> None:
    path = tmp_path / "overlay"
    create_overlay(path, base, "raw", virtual_size_bytes)
    report: dict[str, Any] = json.loads(qemu("qemu-img", "check", "-f", "qcow2", "--output=json", path))
    assert {report["check-errors"], report.get("leaks", 0), report.get("corruptions", 0)} == {0}
    info: dict[str, Any] = json.loads(qemu("qemu-img", "info", "-f", "qcow2", "--output=json", path))
    assert info["virtual-size"] == virtual_size_bytes
    assert (info["backing-filename"], info["backing-filename-format"]) == (str(base), "raw")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 <= 64 * 1024  # nearly all of it is hole


@pytest.mark.real
def test_it_reads_as_the_disk_below_and_keeps_what_is_written(tmp_path: Path, base: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    before = base.read_bytes()
    create_overlay(lower, base, "raw", MIB)
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 0x41 64k 4k", str(lower))
    create_overlay(upper, lower, "qcow2", MIB)
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 0x42 128k 4k", str(upper))
    flat = tmp_path / "flat"
    qemu("qemu-img", "convert", "-f", "qcow2", "-O", "raw", upper, flat)
    expected = bytearray(before)
    expected[65536 : 65536 + 4096] = b"A" * 4096
    expected[131072 : 131072 + 4096] = b"B" * 4096
    assert flat.read_bytes() == expected
    assert base.read_bytes() == before
    for path in (lower, upper):
        qemu("qemu-img", "check", "-q", "-f", "qcow2", path)


def test_the_file_holds_the_header_byte_for_byte(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "overlay"
    create_overlay(path, base, "qcow2", 64 * GIB)
    assert path.read_bytes() == build_overlay_header(str(base), "qcow2", 64 * GIB)


def test_a_relative_backing_path_is_made_absolute(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create_overlay(tmp_path / "overlay", Path("base"), "raw", MIB)
    assert str(base).encode() in (tmp_path / "overlay").read_bytes()


def test_what_exists_is_never_overwritten(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "overlay"
    path.write_bytes(b"somebody's")
    with pytest.raises(InUse):
        create_overlay(path, base, "raw", MIB)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InUse):
        create_overlay(link, base, "raw", MIB)
    assert path.read_bytes() == b"somebody's"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, NoSpace), (errno.EROFS, PermissionMissing)],
)
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[OvmsError]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(expected, match=os.strerror(number)):
        create_overlay(tmp_path / "overlay", base, "raw", MIB)
    assert not (tmp_path / "overlay").exists()


def test_no_directory_and_impossible_sizes(tmp_path: Path, base: Path) -> None:

    with pytest.raises(FileMissing):
        create_overlay(tmp_path / "gone" / "overlay", base, "raw", MIB)
    for size_bytes in (0, -512, 1000, 1 << 62):
        with pytest.raises(UnsafeDisk):
            create_overlay(tmp_path / "overlay", base, "raw", size_bytes)
    assert not (tmp_path / "overlay").exists()
