"""What holds for every test: the event loop is never blocked, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

OUR_PACKAGES = ("spec", "cache", "vmm", "ovms_supervisor")
MIN_TMPFS_BYTES = 256 << 20
"""What the tests with guests need; a container's default /dev/shm is smaller."""

MICROSECONDS = (
    "os.getcwd",
    "os.stat",
    "os.access",
    "os.readlink",
    "os.path.abspath",
    "os.path.islink",
    "os.path.ismount",
    "os.path.samestat",
    "os.path.sameopenfile",
)
"""Looks at one inode of a local file system, far below the 5 ms that the loop may be held; a thread would cost more."""

settings.register_profile("local", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.register_profile("thorough", settings.get_profile("local"), max_examples=5000)
settings.load_profile(os.environ.get("OVMS_HYPOTHESIS") or ("ci" if os.environ.get("CI") else "local"))


def pytest_configure() -> None:
    """Begin alike wherever the suite is started from.

    Programs that tests start and interrupt obey SIGINT, which a background job of a shell inherits as ignored. Files of
    tests are not for others to write to, which some distributions' umask allows and a policy file must not.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(0o022)


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[BlockBuster]:
    """A blocking call anywhere under our own code, while an event loop runs in its thread, is an error.

    The tests' own code may block: it has no users.
    """
    with blockbuster_ctx(list(OUR_PACKAGES)) as found:
        for name in MICROSECONDS:
            found.functions[name].deactivate()
        for each in found.functions.values():  # importing on first use reads files, once
            each.can_block_in("<frozen importlib._bootstrap>", {"_find_and_load"})
            each.can_block_in("ovms_supervisor/instance/journal.py", {"_replace_in_memory"})  # on a tmpfs: see there
        yield found


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Each test gives back its file descriptors and child processes.

    What fixtures of a wider scope hold was there before, and may stay.
    """
    descriptors, children = _descriptors(), _children()
    yield
    if _descriptors().keys() - descriptors.keys():
        gc.collect()  # objects in a cycle close theirs when they are collected
    left = [
        f"file descriptor {number} ({target})" for number, target in _descriptors().items() if number not in descriptors
    ]
    left += [f"child process {pid} ({_command(pid)})" for pid in sorted(_children() - children)]
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture(scope="session")
def uvloop_here() -> None:
    """Skips where there is no uvloop; its first loop makes a pipe that stays as long as the process."""
    pytest.importorskip("uvloop").new_event_loop().close()


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that listed the directory
            found[int(entry.name)] = str(entry.readlink())
    return found


def _children() -> set[int]:
    found: set[int] = set()
    for thread in threading.enumerate():
        with suppress(FileNotFoundError, ProcessLookupError):  # a worker thread that ends just now
            text = Path(f"/proc/self/task/{thread.native_id}/children").read_text()
            found.update(int(pid) for pid in text.split())
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120] or "zombie"
    except OSError:
        return "gone by now"


def _tmpfs_mounts() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, filesystem = line.partition(" - ")
        if filesystem.startswith("tmpfs "):
            yield Path(fields.split()[4].encode().decode("unicode_escape"))


@pytest.fixture(scope="session")
def tmpfs_mount() -> Path:
    """The tmpfs to test on: the largest that may be written to, /dev/shm if it is as good as any."""
    best: tuple[int, Path] | None = None
    for mount in (Path("/dev/shm"), *_tmpfs_mounts()):
        if mount not in set(_tmpfs_mounts()) or not os.access(mount, os.W_OK | os.X_OK) or len(str(mount)) > 24:
            continue
        usage = os.statvfs(mount)
        free = usage.f_bavail * usage.f_frsize
        if free >= MIN_TMPFS_BYTES and (best is None or free > 2 * best[0]):
            best = (free, mount)
    if best is None:
        pytest.skip(f"no writable tmpfs with {MIN_TMPFS_BYTES >> 20} MiB free")
    return best[1]


@pytest.fixture
def tmpfs_dir(tmpfs_mount: Path) -> Iterator[Path]:
    """A directory of this test's own on a tmpfs, with a path short enough for sockets in directories below it."""
    directory = Path(tempfile.mkdtemp(prefix="ovms-", dir=tmpfs_mount))
    yield directory
    shutil.rmtree(directory)
