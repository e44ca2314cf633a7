"""A daemon that gives its images a tmpfs with huge pages: mounted, found again, and gone with the last image."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cache import huge_tmpfs
from ovms_supervisor.config import Settings
from ovms_supervisor.daemon import serving
from spec.errors import DaemonRunning


@pytest.fixture
def settings(tmpfs_dir: Path) -> Iterator[Settings]:
    try:
        huge_tmpfs.mount(tmpfs_dir / "try")
    except OSError as error:
        pytest.skip(f"may not mount a tmpfs with huge pages: {error}")
    huge_tmpfs.unmount(tmpfs_dir / "try")
    images = tmpfs_dir / "images"
    yield Settings(
        root=tmpfs_dir / "root",
        run_dir=tmpfs_dir / "run",
        socket=tmpfs_dir / "run" / "s",
        image_dir=images,
        image_budget_bytes=1 << 28,
        huge_pages=True,
    )
    if images.is_mount():
        subprocess.run(["umount", str(images)], check=True, timeout=30)


async def test_the_mount_goes_with_the_daemon_if_nothing_is_in_it(settings: Settings) -> None:
    for _ in range(2):
        async with serving(settings) as supervisor:
            assert settings.image_dir.is_mount()
            assert await asyncio.to_thread(huge_tmpfs.has_huge_pages, settings.image_dir)
            assert supervisor._host.images._standing == []
        assert not settings.image_dir.is_mount()


async def test_what_is_left_there_is_found_by_the_next_daemon(settings: Settings) -> None:
    ram = settings.image_dir / "instances" / "one" / "ram"
    async with serving(settings):
        await asyncio.to_thread(ram.parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(ram.write_bytes, b"of a machine")
    assert ram.read_bytes() == b"of a machine"
    async with serving(settings) as supervisor:
        assert supervisor._host.images._standing == []
    assert not settings.image_dir.is_mount(), "the second one removed what belongs to no machine"


async def test_another_daemon_neither_mounts_nor_unmounts(settings: Settings) -> None:
    directory = settings.root.parent / "other"
    run_dir = directory / "run"
    other = msgspec.structs.replace(settings, root=directory / "root", run_dir=run_dir, socket=run_dir / "s")
    async with serving(settings):
        with pytest.raises(DaemonRunning):
            async with serving(other):
                pass
        assert settings.image_dir.is_mount()


async def test_images_that_are_there_already_stay_as_they_are(settings: Settings) -> None:
    await asyncio.to_thread(settings.image_dir.mkdir)
    await asyncio.to_thread((settings.image_dir / "mine").touch)
    async with serving(settings) as supervisor:
        assert not settings.image_dir.is_mount()
        assert [each.code for each in supervisor._host.images._standing] == ["huge_pages.unavailable"]
