"""A store, and files to pack: a kernel that looks like one, and a disk of two layers made by qemu-img."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cache.pack import PackRequest
from cache.store import Store
from spec.manifest import Device
from spec.reference import parse_reference

CREATED = datetime(2025, 9, 9, tzinfo=UTC)

Packing = Callable[..., PackRequest]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    store.create()
    yield store
    store.close()
    assert not list(store.temp.directory.iterdir())


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bytes(0x202) + b"HdrS" + b"kernel" * 2000)
    return path


@pytest.fixture
def packing(tmp_path: Path, kernel: Path) -> Packing:
    """Make a request; ``disks`` and the rest as given."""
    initrd = tmp_path / "initrd.img"
    initrd.write_bytes(b"initrd" * 1000)

    def request(name: str = "demo:base", **fields: object) -> PackRequest:
        given = {
            "name": parse_reference(name),
            "kernel": kernel,
            "initrd": initrd,
            "args": "console=ttyS0",
            "memory_bytes": 64 << 20,
            "cpus": 2,
            "devices": (Device(type="ivshmem", name="mmio0", size=1 << 20),),
            "created": CREATED,
            "author": "tests",
        } | fields
        return PackRequest(**given)  # type: ignore[arg-type]

    return request


@pytest.fixture
def qemu_disk(tmp_path: Path) -> tuple[Path, Path]:
    """A qcow2 base of 8 MiB and a diff on it, with different data in each."""
    for tool in ("qemu-img", "qemu-io"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    base, diff = tmp_path / "base.qcow2", tmp_path / "diff.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", base, "8M")
    run("qemu-io", "-c", "write -P 1 0 1M", base)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", diff)
    run("qemu-io", "-c", "write -P 2 512k 64k", diff)
    return base, diff


def run(*args: str | Path) -> str:
    return subprocess.run([str(each) for each in args], check=True, capture_output=True, text=True).stdout
