from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache.ramsnap import EncodedRamsnap, read_header
from cache.resident import ResidentImages
from spec.digest import Digest
from spec.ramsnap import RamsnapHeader
from spec.sizes import PAGE_BYTES
from tests.cache.ramsnap.snapshots import Snapshot, page_of
from tests.cache.resident.kernel import locked_kib

IMAGE_PAGES = 600
DATA_PAGES = (0, *range(100, 200), 599)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A snapshot and the blob of it."""

    snapshot: Snapshot
    encoded: EncodedRamsnap
    blob: Path
    header: RamsnapHeader

    @property
    def digest(self) -> Digest:
        return self.encoded.digest


Sampling = Callable[..., Sample]


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[Sampling]:
    """Makes snapshots of 102 pages of data, among holes, and one page of device state; each number another one."""

    def make(number: int = 0, pages: tuple[int, ...] = DATA_PAGES, size_in_pages: int = IMAGE_PAGES) -> Sample:
        snapshot = Snapshot.write(
            tmp_path / f"sample-{number}",
            {page: page_of(1000 * number + page) for page in pages},
            size_in_pages * PAGE_BYTES,
            {"device": page_of(number)},
        )
        blob = tmp_path / f"blob-{number}"
        encoded = snapshot.encode(blob, threads=1)
        return Sample(snapshot=snapshot, encoded=encoded, blob=blob, header=read_header(blob))

    with ThreadPoolExecutor(1) as aside:  # tests with an event loop make some, too
        yield lambda *args: aside.submit(make, *args).result()


@pytest.fixture
def image_dir(tmpfs_dir: Path) -> Path:
    return tmpfs_dir / "images"


@pytest.fixture
async def images(image_dir: Path) -> AsyncIterator[ResidentImages]:
    """Open; afterwards nothing is being made, and nothing is locked."""
    locked = locked_kib()
    resident = ResidentImages(image_dir, mlock="required")
    await resident.open()
    yield resident
    await resident.close()
    assert list((image_dir / ".staging").iterdir()) == []
    assert locked_kib() == locked


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB, mounted for the test; needs root."""
    mount = tmp_path / "tmpfs"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mount], capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs")
    yield mount
    subprocess.run(["umount", mount], check=True)
