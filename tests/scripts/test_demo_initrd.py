"""What the demo's initrd is made of: the archive, and the modules in an order in which they load."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest
import zstandard

from scripts.demo import cpio
from scripts.demo.modules import load_order


def read_newc(data: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of the format: name → mode and content."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], data[start : start + fields[6]])
        at = (start + fields[6] + 3) // 4 * 4


def test_the_archive_is_read_back() -> None:
    entries = [
        cpio.directory("bin"),
        cpio.file("bin/busybox", b"\x7fELF-", executable=True),
        cpio.symlink("bin/sh", "busybox"),
        cpio.file("empty", b""),
    ]

    data = cpio.archive(entries)

    assert len(data) % 4 == 0
    assert read_newc(data) == {
        "bin": (0o040755, b""),
        "bin/busybox": (0o100755, b"\x7fELF-"),
        "bin/sh": (0o120777, b"busybox"),
        "empty": (0o100644, b""),
    }


def module(*dependencies: str) -> bytes:
    return struct.pack("<I", 0x464C457F) + b"license=GPL\0depends=" + ",".join(dependencies).encode() + b"\0intree=Y\0"


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/lib/crc-core.ko\n")
    (tmp_path / "kernel/virtio_pci.ko").write_bytes(module("virtio_ring", "virtio-bus"))
    (tmp_path / "kernel/virtio_ring.ko.xz").write_bytes(lzma.compress(module("virtio_bus")))
    (tmp_path / "kernel/virtio-bus.ko.zst").write_bytes(zstandard.compress(module("crc_core")))
    return tmp_path


def test_what_a_module_needs_comes_before_it(modules: Path) -> None:
    found = load_order(modules, ("virtio_pci", "ext4"))

    assert list(found) == ["virtio_bus.ko", "virtio_ring.ko", "virtio_pci.ko"]
    assert found["virtio_ring.ko"] == module("virtio_bus")


def test_a_missing_module_is_named(modules: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no module evdev"):
        load_order(modules, ("evdev",))
