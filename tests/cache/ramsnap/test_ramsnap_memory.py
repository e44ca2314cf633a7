"""The codec's memory does not grow with the image: measured as the peak of a process that does nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from spec.sizes import MIB

ROOT = Path(__file__).parents[3]
IMAGE_BYTES = 384 * MIB
BOUND_BYTES = 128 * MIB
"""Two threads: 5 frames under way, each with its input, payload and output, and what malloc keeps."""

PROGRAM = """
import random, sys
from pathlib import Path
from cache.ramsnap import decode, encode
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
after_encode = peak() - before
decode(directory / "blob", encoded.digest, directory / "out", threads=2)
print(after_encode, peak() - before)
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
    encoding_bytes, all_bytes = map(int, done.stdout.split())
    assert encoding_bytes < BOUND_BYTES
    assert all_bytes < BOUND_BYTES
