"""Waiting for paths and following files without polling."""

from __future__ import annotations

import asyncio
import os
import struct
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.errors import FileMissing, VmmTimeout
from vmm import inotify
from vmm.inotify import modifications, parse_events, wait_for_path


def inotify_descriptors() -> int:
    links = list(Path("/proc/self/fd").iterdir())
    return sum(link.is_symlink() and "inotify" in str(link.readlink()) for link in links)


async def test_a_path_that_is_there_already(tmp_path: Path) -> None:
    await wait_for_path(tmp_path, limit_s=1)
    assert inotify_descriptors() == 0


@pytest.mark.parametrize("how", ["create", "rename", "link"])
async def test_a_path_that_appears(tmp_path: Path, how: str) -> None:
    other, path = tmp_path / "other", tmp_path / "path"
    waiting = [asyncio.create_task(wait_for_path(path, limit_s=5)) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert inotify_descriptors() == 1
    other.touch()
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    match how:
        case "create":
            path.touch()
        case "rename":
            other.rename(path)
        case "link":
            path.hardlink_to(other)
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    assert inotify_descriptors() == 0


async def test_a_path_that_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(VmmTimeout, match="did not appear"):
        await wait_for_path(tmp_path / "never", limit_s=0.02)
    assert inotify_descriptors() == 0


async def test_a_directory_that_goes_away_or_never_was(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    with pytest.raises(FileMissing):
        await wait_for_path(directory / "path", limit_s=5)
    directory.mkdir()
    task = asyncio.create_task(wait_for_path(directory / "path", limit_s=5))
    await asyncio.sleep(0.01)
    directory.rmdir()
    with pytest.raises(FileMissing, match="removed"):
        await task
    assert inotify_descriptors() == 0


async def test_modifications_see_every_byte_and_the_end(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.touch()
    seen: list[int] = []

    async def follow() -> None:
        async with aclosing(modifications(path)) as changes:
            async for _ in changes:
                seen.append(path.stat().st_size if path.exists() else -1)  # noqa: PERF401 (looked at from outside)

    follower = asyncio.create_task(follow())
    with path.open("ab", buffering=0) as file:
        for written in range(1, 2001):
            file.write(b"x")
            if written % 100 == 0:
                await asyncio.sleep(0.002)
    while seen[-1] < 2000:
        await asyncio.wait_for(asyncio.sleep(0.005), 1)
    assert len(seen) < 200  # 2,000 writes did not make 2,000 turns
    path.unlink()
    await asyncio.wait_for(follower, 1)
    assert seen[-1] == -1
    assert inotify_descriptors() == 0


async def test_two_followers_of_one_file_and_a_third_of_another(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.touch()
    iterators = [modifications(path) for path in paths]
    for iterator in iterators:
        await anext(iterator)
    assert inotify_descriptors() == 1
    paths[0].write_text("x")
    await asyncio.wait_for(asyncio.gather(anext(iterators[0]), anext(iterators[1])), 1)
    await iterators[0].aclose()
    paths[1].write_text("y")
    await asyncio.wait_for(anext(iterators[1]), 1)  # the watch outlives the first follower
    third = asyncio.ensure_future(anext(iterators[2]))
    await asyncio.sleep(0.01)
    assert not third.done()
    paths[2].write_text("z")
    await asyncio.wait_for(third, 1)
    for iterator in iterators:
        await iterator.aclose()
    assert inotify_descriptors() == 0


async def test_a_cancelled_follower_drops_its_watch(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.touch()

    async def follow() -> None:
        async with aclosing(modifications(path)) as changes:
            async for _ in changes:
                pass

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait((task,))
    assert inotify_descriptors() == 0


async def test_an_overflow_wakes_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = inotify.Inotify()
    with watcher.watching(tmp_path, 0x100) as one, watcher.watching(Path("/"), 0x100) as other:
        record = struct.pack("iIII", -1, 0x4000, 0, 0)
        monkeypatch.setattr(os, "read", lambda fd, size: record)
        watcher._read()
        assert one.is_set()
        assert other.is_set()


@given(st.lists(st.tuples(st.integers(-1, 2**31 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=64))))
def test_records_are_parsed_whatever_their_names(records: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(struct.pack("iIII", wd, mask, 0, len(name)) + name for wd, mask, name in records)
    assert list(parse_events(data)) == [(wd, mask) for wd, mask, _ in records]
