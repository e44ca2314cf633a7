"""The codec's memory does not grow with the image.

Of the encoder, the peak of a process that does nothing else. Of the decoder, the buffers that it takes: the kernel's
figures of a process that decodes include the pages of the image while they are mapped.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cache.ramsnap import decode
from cache.ramsnap.buffer import Buffer
from spec.ramsnap import FRAME_BYTES, PAGES_PER_FRAME
from spec.sizes import MIB, PAGE_BYTES
from tests.cache.ramsnap.snapshots import Snapshot, page_of

ROOT = Path(__file__).parents[3]
IMAGE_BYTES = 384 * MIB
BOUND_BYTES = 128 * MIB
"""Two threads: 5 frames under way, each with its input, payload and output, and what malloc keeps."""

PROGRAM = """
import random, sys
from pathlib import Path
from cache.ramsnap import encode
from tests.cache.ramsnap.snapshots import CREATED, compatibility

directory, image_bytes = Path(sys.argv[1]), int(sys.argv[2])
piece = random.Random(1).randbytes(1 << 20) + b"text" * (3 << 18)
(directory / "state").mkdir()
(directory / "state" / "device").write_bytes(piece)
with (directory / "ram").open("wb") as ram:
    for _ in range(0, image_bytes, len(piece)):
        ram.write(piece)

def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

before = peak()
encoded = encode(directory / "ram", directory / "state", compatibility(image_bytes), directory / "blob",
                 created=CREATED, threads=2)
print(peak() - before)
"""


def test_memory_is_bounded(tmpfs_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmpfs_dir, str(IMAGE_BYTES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < BOUND_BYTES


def test_the_decoder_takes_as_many_buffers_for_many_frames_as_for_few(
    tmp_path: Path, tmpfs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    class Counted(Buffer):
        def __init__(self, size_bytes: int) -> None:
            taken.append(size_bytes)
            super().__init__(size_bytes)

    monkeypatch.setattr("cache.ramsnap.decoder.Buffer", Counted)
    frames = 40
    pages = {frame * PAGES_PER_FRAME + page: page_of(frame) for frame in range(frames) for page in (0, 7, 8)}
    snapshot = Snapshot.write(tmpfs_dir / "snapshot", pages, frames * FRAME_BYTES, {"device": b"x" * 9_000_000})
    encoded = snapshot.encode(tmp_path / "blob", threads=1)
    decode(tmp_path / "blob", encoded.digest, tmpfs_dir / "decoded", threads=2)
    assert sum(taken) < 8 * (FRAME_BYTES + PAGE_BYTES)
