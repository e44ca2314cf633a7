"""Listening and connecting, whatever the length of the path."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from vmm import unix_socket


@pytest.mark.parametrize("depth", [0, 3])
async def test_a_line_goes_through(tmpfs_dir: Path, depth: int) -> None:
    directory = tmpfs_dir.joinpath(*["d" * 60] * depth)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "vmm.sock"
    with unix_socket.listen(path) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        _, writer = await unix_socket.connect(path)
        writer.write(b"hello")
        await writer.drain()
        accepted, _ = listener.accept()
        with accepted:
            assert await run_sync(accepted.recv, 100) == b"hello"
        writer.close()
        await writer.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await unix_socket.connect(path)


async def test_what_cannot_be(tmpfs_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await unix_socket.connect(tmpfs_dir / "nothing")
    with pytest.raises(FileNotFoundError):
        unix_socket.listen(tmpfs_dir / "no" / "directory")
    (tmpfs_dir / "taken").touch()
    with pytest.raises(OSError, match="in use"):
        unix_socket.listen(tmpfs_dir / "taken")
