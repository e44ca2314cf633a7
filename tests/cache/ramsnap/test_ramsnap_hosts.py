"""Hosts that can't decode in place decode all the same; and one that runs out of room says so, and lives on."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from cache.memory_map import MemoryMap
from cache.ramsnap import EncodedRamsnap, decode
from spec.errors import HostLimit, NoSpace
from spec.ramsnap import PAGES_PER_FRAME
from spec.sizes import PAGE_BYTES
from tests.cache.ramsnap.snapshots import Snapshot, same_content


def failing(number: int) -> object:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("__init__", errno.ENODEV),  # a file system without shared mappings
        ("__init__", errno.ENOMEM),
        ("populate", errno.EINVAL),  # before Linux 5.14
    ],
)
def test_without_a_mapping_everything_is_written(
    call: str,
    number: int,
    snapshot: Snapshot,
    encoded: EncodedRamsnap,
    blob: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryMap, call, failing(number))
    decode(blob, encoded.digest, tmp_path / "out")
    assert same_content(tmp_path / "out", snapshot.ram.parent)


@pytest.mark.parametrize(("number", "error"), [(errno.EFAULT, NoSpace), (errno.ENOMEM, HostLimit)])
def test_pages_that_cannot_be_had_are_an_error(
    number: int,
    error: type[Exception],
    encoded: EncodedRamsnap,
    blob: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryMap, "populate", failing(number))
    with pytest.raises(error):
        decode(blob, encoded.digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tmpfs_that_fills_up_in_the_middle_of_a_frame_is_no_signal(tmp_path: Path, small_tmpfs: Path) -> None:
    """A store into a mapping of a full tmpfs would be a SIGBUS, the end of the daemon."""
    noise = random.Random(9)
    pages = {page: noise.randbytes(PAGE_BYTES) for page in range(PAGES_PER_FRAME)}  # 4 MiB, all in one place
    snapshot = Snapshot.write(tmp_path / "snapshot", pages, PAGES_PER_FRAME * PAGE_BYTES, {})
    encoded = snapshot.encode(tmp_path / "blob")
    with pytest.raises(NoSpace):
        decode(tmp_path / "blob", encoded.digest, small_tmpfs / "out")
    assert list(small_tmpfs.iterdir()) == []
