"""Files behind ivshmem devices, and sockets by long paths."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.errors import InvalidSize, NoSpace, OutOfRange
from vmm import shared_memory


def test_a_new_device_is_zero_private_and_has_its_pages(tmpfs_dir: Path) -> None:
    path = tmpfs_dir / "device"
    shared_memory.create(path, 65536)
    status = path.stat()
    assert (status.st_size, status.st_blocks * 512, stat.S_IMODE(status.st_mode)) == (65536, 65536, 0o600)
    assert shared_memory.read(path, 0, 65536) == bytes(65536)
    with pytest.raises(FileExistsError):
        shared_memory.create(path, 65536)


@pytest.mark.parametrize("size_bytes", [0, -1, 3, 4095, 4097])
def test_a_bar_has_a_power_of_two(tmpfs_dir: Path, size_bytes: int) -> None:
    with pytest.raises(InvalidSize):
        shared_memory.create(tmpfs_dir / "device", size_bytes)
    assert list(tmpfs_dir.iterdir()) == []


def test_no_room_leaves_no_file(tmpfs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoSpace):
        shared_memory.create(tmpfs_dir / "device", 65536)
    assert list(tmpfs_dir.iterdir()) == []


@given(st.integers(-10, 4110), st.binary(max_size=40))
def test_it_reads_what_was_written_or_refuses_all_of_it(offset: int, data: bytes) -> None:
    path = Path(f"/dev/shm/ovms-test-{os.getpid()}")
    path.unlink(missing_ok=True)
    shared_memory.create(path, 4096)
    try:
        if offset >= 0 and offset + len(data) <= 4096:
            shared_memory.write(path, offset, data)
            assert shared_memory.read(path, offset, len(data)) == data
            assert shared_memory.read(path, 0, 4096).count(0) >= 4096 - len(data)
        else:
            with pytest.raises(OutOfRange):
                shared_memory.write(path, offset, data)
            with pytest.raises(OutOfRange):
                shared_memory.read(path, offset, len(data))
            assert shared_memory.read(path, 0, 4096) == bytes(4096)
        assert path.stat().st_size == 4096
    finally:
        path.unlink()
