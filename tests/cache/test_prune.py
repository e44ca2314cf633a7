"""What goes, what never does, and that neither death nor company in the middle does harm."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cache.artifact import Artifact
from cache.disk_layers import materialise_disks
from cache.lock import hold
from cache.pack import pack
from cache.prune import GRACE_S, free, prune, shrink
from cache.store import Store
from spec.digest import Digest
from spec.errors import CorruptStore, NoSpace
from tests.cache.conftest import Packing


def whats(garbage: list[Any]) -> set[str]:
    return {each.what for each in garbage}


def blobs(store: Store) -> set[str]:
    return {f"sha256:{path.name}" for path in (store.root / "blobs" / "sha256").iterdir()}


def check(store: Store, *kept: Digest) -> None:
    """The kept artifacts are whole."""
    assert set(kept) <= {each.digest for each in store.list()}
    for digest in kept:
        for blob in store.artifact(digest).blobs:
            store.verify_blob(blob)


def own_blobs(artifact: Artifact, *others: Artifact) -> set[str]:
    shared = {each.digest for other in others for each in other.blobs}
    return {artifact.digest, *(each.digest for each in artifact.blobs)} - shared


def make_old(path: Path) -> None:
    long_ago = time.time() - GRACE_S - 60
    os.utime(path, (long_ago, long_ago))


def test_artifacts_without_a_name_go_and_those_with_one_stay(store: Store, packing: Packing) -> None:
    old = store.artifact(pack(store, packing("demo:base", args="old")))
    new = store.artifact(pack(store, packing("demo:base", args="new")))
    planned = prune(store, dry_run=True)
    assert blobs(store) >= {old.digest, new.digest}
    assert whats(planned) == own_blobs(old, new)
    assert sum(each.size_bytes for each in planned) > 0
    assert prune(store) == planned
    check(store, new.digest)
    assert [each.digest for each in store.list()] == [new.digest]
    assert prune(store, everything=True) == []


def test_disks_that_no_machine_uses_go_with_everything_and_are_made_again(
    store: Store, packing: Packing, qemu_disk: tuple[Path, Path]
) -> None:
    artifact = store.artifact(pack(store, packing("demo:base", disks=qemu_disk)))
    chain = materialise_disks(store, artifact)
    assert chain is not None
    assert prune(store) == []
    with store.pinned(artifact.digest):
        assert prune(store, everything=True) == []
    assert all(each.startswith("disks/") for each in whats(prune(store, everything=True)))
    assert not list(store.disks_dir.iterdir())
    assert materialise_disks(store, artifact) == chain


def test_a_name_that_is_removed_frees_what_only_its_artifact_needed(
    store: Store, packing: Packing, qemu_disk: tuple[Path, Path]
) -> None:
    base = store.artifact(pack(store, packing("demo:base", disks=qemu_disk[:1])))
    more = store.artifact(pack(store, packing("demo:more", disks=qemu_disk)))
    for each in (base, more):
        materialise_disks(store, each)
    young = store.put_bytes(b"of an interrupted pull")
    store.pin(young)
    freed = whats(free(store, [store.untag("demo:more")]))
    assert {each for each in freed if not each.startswith("disks/")} == own_blobs(more, base)
    assert len([each for each in freed if each.startswith("disks/")]) == 1
    check(store, base.digest)
    store.tag("demo:again", base.digest)
    assert free(store, [store.untag("demo:base")]) == [], "it has another name"
    store.claim("machine", store.root, [base.digest])
    assert free(store, [store.untag("demo:again")]) == [], "a machine needs it"
    store.disclaim("machine")
    assert own_blobs(base) <= whats(prune(store))
    assert blobs(store) == {young}


def test_what_a_pull_was_interrupted_in_waits_for_a_day(store: Store) -> None:
    store.create()
    orphan = store.put_bytes(b"a blob that was fetched whole")
    store.close()
    part = store.partial_dir / ("0" * 64)
    part.write_bytes(b"half")
    assert prune(store) == []
    make_old(store.blob_path(orphan))
    assert whats(prune(store)) == {orphan}, "older than that pull can be"
    orphan = store.put_bytes(b"another")
    store.close()
    descriptor = os.open(part, os.O_RDWR)
    assert hold(descriptor)
    make_old(part)
    assert whats(prune(store, everything=True)) == {orphan}, "somebody is at the other one"
    os.close(descriptor)
    assert whats(prune(store)) == {f"partial/{part.name}"}


def test_a_limit_is_kept_by_what_was_used_longest_ago(store: Store, packing: Packing, tmp_path: Path) -> None:
    artifacts = []
    for number in range(4):
        (tmp_path / "initrd.img").write_bytes(os.urandom(1 << 20))
        artifacts.append(store.artifact(pack(store, packing("demo:base", args=str(number)))))
    first, second, third, named = artifacts
    assert shrink(store, store.size_bytes()) == []
    store.note_use(first.digest)
    freed = shrink(store, store.size_bytes() - (1 << 20))
    assert whats(freed) == own_blobs(second, first, third, named)
    assert whats(shrink(store, 0)) == own_blobs(first, named) | own_blobs(third, named)
    check(store, named.digest)
    assert shrink(store, 0) == [], "what has a name stays, whatever the limit"


def test_a_damaged_manifest_stops_everything(store: Store, packing: Packing) -> None:
    kept = pack(store, packing("demo:kept"))
    pack(store, packing("demo:base", args="old"))
    pack(store, packing("demo:base", args="new"))
    before = blobs(store)
    path = store.blob_path(kept)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b" ")
    for collect in (prune, lambda store: prune(store, everything=True), lambda store: shrink(store, 0)):
        with pytest.raises(CorruptStore):
            collect(store)
    assert blobs(store) == before
    path.write_bytes(data)
    assert prune(store)


def die_at(step: int, work: Callable[[], object]) -> None:
    """In a child: be killed just before its so many-th change of a directory."""
    changes = 0

    def hook(event: str, _: tuple[Any, ...]) -> None:
        nonlocal changes
        if event in ("os.rename", "os.remove", "os.rmdir"):
            changes += 1
            if changes == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work()
    os._exit(0)


@pytest.mark.parametrize("kind", ["prune", "shrink", "free"])
def test_a_collection_killed_at_any_step_leaves_a_sound_store(
    store: Store, packing: Packing, qemu_disk: tuple[Path, Path], kind: str
) -> None:
    kept = pack(store, packing("demo:kept"))
    context = multiprocessing.get_context("fork")
    step = 0
    while True:
        step += 1
        for args in ("old", "new"):
            materialise_disks(store, store.artifact(pack(store, packing("demo:base", args=args, disks=qemu_disk))))
        (store.partial_dir / ("0" * 64)).write_bytes(b"half")

        def work() -> None:
            other = Store(store.root)
            match kind:
                case "prune":
                    prune(other, everything=True)
                case "shrink":
                    shrink(other, 0)
                case "free":
                    free(other, [other.untag("demo:base")])

        process = context.Process(target=die_at, args=(step, work))
        process.start()
        process.join(30)
        code = process.exitcode
        process.close()
        check(store, kept)
        for listed in store.list():
            check(store, listed.digest)
        store.create()
        assert not list(store.temp.directory.iterdir())
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert step > 5
    for digest in {each.digest for each in store.list()}:
        store.unlist(digest)
    prune(store, everything=True)
    assert not blobs(store)
    assert not list(store.partial_dir.iterdir())


def test_packers_and_collectors_at_once(store: Store, packing: Packing) -> None:
    """In threads of two stores, which know no more of each other than processes do."""
    kept = pack(store, packing("demo:kept"))
    other = Store(store.root)
    enough = threading.Event()
    failures: list[BaseException] = []

    def collect() -> None:
        try:
            while not enough.is_set():
                prune(other, everything=True)
                shrink(other, 0)
        except BaseException as error:
            failures.append(error)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for number in range(20):
            digest = pack(store, packing(f"demo:{number % 3}", args=str(number)))
            check(store, kept, digest)
    finally:
        enough.set()
        collector.join(30)
    assert not failures
    other.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)]
    if os.geteuid() or subprocess.run(command, check=False, timeout=30).returncode:
        pytest.skip("no mount here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True, timeout=30)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_can_be_pruned(small_disk: Path, packing: Packing, tmp_path: Path) -> None:
    store = Store(small_disk / "store")
    store.create()
    (tmp_path / "initrd.img").write_bytes(os.urandom(1 << 20))
    pack(store, packing("demo:base", args="old"))
    kept = pack(store, packing("demo:base", args="new"))
    orphan = store.put_bytes(b"an orphan" * 1000)
    store.close()
    fill(small_disk / "fill")
    with pytest.raises(NoSpace):
        pack(store, packing("demo:more"))
    removed = whats(prune(store))
    assert orphan in removed
    assert len(removed) > 1
    check(store, kept)
    assert not list(store.temp.directory.iterdir())


def test_where_a_full_disk_leaves_no_room_for_a_shorter_list_nothing_goes(small_disk: Path, packing: Packing) -> None:
    store = Store(small_disk / "store")
    store.create()
    pack(store, packing("demo:base", args="old"))
    pack(store, packing("demo:base", args="new"))
    before = blobs(store)
    fill(small_disk / "fill")
    with pytest.raises(NoSpace):
        prune(store)
    assert blobs(store) == before
    assert not list(store.temp.directory.iterdir())
    (small_disk / "fill").unlink()
    assert prune(store)
    store.close()
