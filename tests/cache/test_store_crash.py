"""Several processes on one store, writers that die, file systems that are full or read-only."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.pack import pack
from cache.store import Store
from spec.digest import digest_of
from spec.errors import NoSpace, PermissionMissing
from tests.cache.conftest import Packing

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def pack_many(root: Path, request: Packing, number: int) -> None:
    store = Store(root)
    store.create()
    for index in range(4):
        pack(store, request(f"demo:{number}-{index}", args=f"{number} {index}"))
        pack(store, request("demo:shared", args=f"shared {number} {index}"))
        store.untag(f"demo:{number}-{index}") if index % 2 else None
        store.remove_unreferenced()


def test_processes_pack_tag_and_remove_at_once(store: Store, packing: Packing) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=pack_many, args=(store.root, packing, number)) for number in range(4)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(30)
    assert [each.exitcode for each in processes] == [0] * 4
    names = {each.name for each in store.list()}
    assert names == {None, "demo:shared", *(f"demo:{number}-{index}" for number in range(4) for index in (0, 2))}
    for listed in store.list():
        for blob in store.artifact(listed.digest).blobs:
            store.verify_blob(blob)
    assert not list((store.root / "ovms.blobs" / "pins").iterdir())


DYING_WRITER = """
import os, sys
from pathlib import Path
from cache.store import Store
store = Store(Path(sys.argv[1]))
store.create()
store.put_bytes(b"pinned")
writer = store.writer()
writer.write(b"half of it" * 100000)
part, held = store.temp.new_directory()
(part / "image").write_bytes(b"half")
print("writing", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_left_alone(store: Store) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", DYING_WRITER, str(store.root)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    try:
        for each in writers:
            assert each.stdout is not None
            assert each.stdout.readline() == b"writing\n"
        temp = store.temp.directory
        assert len(list(temp.iterdir())) == 4
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        store.create()
        assert {int(each.name.split("-")[0]) for each in temp.iterdir()} == {writers[1].pid}
        assert len(list(temp.iterdir())) == 2
        assert store.remove_unreferenced() == [], "the living writer has pinned the blob"
        writers[1].send_signal(signal.SIGKILL)
        writers[1].wait()
        store.create()
        assert not list(temp.iterdir())
        assert [each.what for each in store.remove_unreferenced()] == [digest_of(b"pinned")]
    finally:
        for each in writers:
            each.kill()
            each.communicate()


def test_a_packer_killed_at_any_moment_leaves_a_sound_store(store: Store, packing: Packing, tmp_path: Path) -> None:
    kept = pack(store, packing("demo:kept"))
    (tmp_path / "initrd.img").write_bytes(os.urandom(4 << 20))
    context = multiprocessing.get_context("fork")
    for delay_ms in (0, 2, 4, 8, 16, 32):
        process = context.Process(target=pack_many, args=(store.root, packing, delay_ms))
        process.start()
        time.sleep(delay_ms / 1000)
        process.kill()
        process.join()
        process.close()
        store.create()
        assert not list(store.temp.directory.iterdir())
        for listed in store.list():
            for blob in store.artifact(listed.digest).blobs:
                store.verify_blob(blob)
    for listed in store.list():
        if listed.digest != kept:
            store.untag(listed.name) if listed.name else store.unlist(listed.digest)
    store.remove_unreferenced()
    left = {f"sha256:{each.name}" for each in (store.root / "blobs" / "sha256").iterdir()}
    assert left == {kept, *(each.digest for each in store.artifact(kept).blobs)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], check=False).returncode:
        pytest.skip("no mount here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@needs_root
@pytest.mark.parametrize("size", [1 << 20, 5 << 20, (1 << 20) - 40 * 1024])
def test_a_full_disk_is_told_and_nothing_is_left(small_disk: Path, packing: Packing, tmp_path: Path, size: int) -> None:
    store = Store(small_disk / "store")
    store.create()
    (tmp_path / "initrd.img").write_bytes(os.urandom(size))
    with pytest.raises(NoSpace) as caught:
        pack(store, packing("demo:large"))
    assert str(small_disk) in caught.value.detail
    assert not list(store.temp.directory.iterdir())
    assert not list((store.root / "blobs" / "sha256").iterdir())
    assert store.list() == []
    (tmp_path / "initrd.img").write_bytes(b"small")
    pack(store, packing("demo:small"))
    store.close()


@needs_root
def test_a_read_only_store_is_told(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    store.create()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(PermissionMissing) as caught:
        store.put_bytes(b"data")
    assert str(small_disk) in caught.value.detail
    with pytest.raises(PermissionMissing):
        store.create()
    assert store.list() == []


def test_a_store_of_somebody_else_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may do anything, and there is no setpriv to become somebody else")
    root = tmp_path / "theirs"
    root.mkdir(mode=0o700)
    script = (
        "import sys; from pathlib import Path\n"
        "from cache.store import Store; from spec.errors import PermissionMissing\n"
        "try: Store(Path(sys.argv[1]) / 'store').create()\n"
        "except PermissionMissing as error: print(error.detail)"
    )
    tmp_path.chmod(0o755)
    command = [sys.executable, "-c", script, str(root)]
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    else:
        root.chmod(0o500)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "No module named" in done.stderr:
        pytest.skip("another user can't read the project")
    assert done.returncode == 0, done.stderr
    assert str(root) in done.stdout
