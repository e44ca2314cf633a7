"""The store on its own: blobs, names, pins, and what others may have done to its files."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path
from threading import Event

import pytest

from cache.compose import StoredBlob, compose
from cache.pack import pack
from cache.store import Store
from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import (
    ArtifactNotFound,
    BlobNotFound,
    CorruptStore,
    DigestMismatch,
    FileMissing,
    InvalidInput,
    InvalidManifest,
    InvalidReference,
    SizeMismatch,
    UnsupportedManifest,
)
from spec.manifest import decode_manifest
from spec.oci import Descriptor
from spec.reference import DigestSource, parse_reference
from tests.cache.conftest import Packing


def descriptor_of(data: bytes) -> Descriptor:
    return Descriptor("application/octet-stream", digest_of(data), len(data))


def files_in(root: Path) -> set[str]:
    return {str(each.relative_to(root)) for each in root.rglob("*") if each.is_file()}


def test_a_new_store_is_an_empty_oci_layout(store: Store) -> None:
    assert json.loads((store.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((store.root / "index.json").read_text())["manifests"] == []
    store.create()
    assert store.list() == []


def test_blobs_come_back_as_they_went_in(store: Store) -> None:
    data = os.urandom(3 << 20) + bytes(2 << 20)
    digest, size = store.put_file(io.BytesIO(data))
    assert (digest, size) == (digest_of(data), len(data))
    assert store.read_blob(descriptor_of(data), max_bytes=len(data)) == data
    assert store.blob_path(digest).stat().st_blocks * 512 < len(data) - (1 << 20), "zeros are holes"
    assert store.has_blob(digest)
    assert not store.has_blob(digest_of(b"other"))


def test_a_blob_that_is_not_what_was_expected_leaves_nothing(store: Store) -> None:
    before = files_in(store.root)
    with pytest.raises(DigestMismatch):
        store.put_file(io.BytesIO(b"data"), expected=digest_of(b"other"))
    with pytest.raises(SizeMismatch):
        store.put_file(io.BytesIO(b"data"), size=3)
    with pytest.raises(SizeMismatch):
        store.put_file(io.BytesIO(b"data"), size=5)
    with store.writer() as writer:
        writer.write(b"half")
    assert files_in(store.root) == before


def test_a_stream_longer_than_announced_is_not_read_to_its_end(store: Store) -> None:
    stream = io.BytesIO(bytes(8 << 20))
    with pytest.raises(SizeMismatch):
        store.put_file(stream, size=1 << 20)
    assert stream.tell() <= (1 << 20) + 1


def test_a_finished_file_is_taken_without_a_copy(store: Store) -> None:
    path = store.root / "finished"
    path.write_bytes(b"finished")
    inode = path.stat().st_ino
    store.take_file(path, digest_of(b"finished"))
    assert store.verify_blob(descriptor_of(b"finished")).stat().st_ino == inode
    assert not path.exists()
    with pytest.raises(FileMissing):
        store.take_file(path, digest_of(b"finished"))
    assert store.remove_unreferenced() == []


def test_only_plain_files_are_put(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileMissing):
        store.put_file(tmp_path / "missing")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(InvalidInput, match="not a regular file"):
            store.put_file(path)


def test_a_changed_blob_is_found_when_read(store: Store) -> None:
    descriptor = descriptor_of(b"content")
    path = store.blob_path(store.put_bytes(b"content"))
    path.write_bytes(b"c0ntent")
    with pytest.raises(DigestMismatch):
        store.read_blob(descriptor)
    path.write_bytes(b"longer content")
    with pytest.raises(SizeMismatch):
        store.read_blob(descriptor)
    path.unlink()
    with pytest.raises(BlobNotFound):
        store.read_blob(descriptor)
    with pytest.raises(SizeMismatch):
        store.read_blob(descriptor, max_bytes=3)


def test_putting_a_blob_again_heals_it(store: Store) -> None:
    path = store.blob_path(store.put_bytes(b"content"))
    path.write_bytes(b"c0ntent")
    store.put_bytes(b"content")
    assert path.read_bytes() == b"content"


def test_verify_blob_hashes_once_and_again_after_a_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import cache.verified_blobs

    hashed: list[int] = []
    hash_file = cache.verified_blobs._hash

    def counting(fd: int, stop: Event | None) -> Digest:
        hashed.append(fd)
        return hash_file(fd, stop)

    monkeypatch.setattr(cache.verified_blobs, "_hash", counting)
    descriptor = descriptor_of(b"content")
    path = store.blob_path(store.put_bytes(b"content"))
    assert store.verify_blob(descriptor) == path
    store.verify_blob(descriptor)
    assert len(hashed) == 1
    stat = path.stat()
    path.write_bytes(b"c0ntent")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # who hides a change can't hide the change time
    for _ in range(2):
        with pytest.raises(DigestMismatch):
            store.verify_blob(descriptor)
    assert len(hashed) == 3


def test_names_move_and_what_lost_its_name_stays_listed(store: Store, packing: Packing) -> None:
    first = pack(store, packing("demo:base"))
    second = pack(store, packing("demo:base", args="quiet"))
    assert first != second
    assert [(each.name, each.digest) for each in store.list()] == [(None, first), ("demo:base", second)]
    store.tag("demo:old", first)
    assert {(each.name, each.digest) for each in store.list()} == {("demo:old", first), ("demo:base", second)}
    store.tag("demo:base", first)
    store.tag("demo:base", first)
    assert sorted((each.name or "", each.digest) for each in store.list()) == sorted(
        [("demo:old", first), ("demo:base", first), ("", second)]
    )
    assert store.untag("demo:old") == first
    assert store.untag("demo:base") == first
    assert [each.digest for each in store.list()] == [second]
    with pytest.raises(ArtifactNotFound):
        store.untag("demo:base")
    assert store.unlist(second) == []
    with pytest.raises(ArtifactNotFound):
        store.unlist(second)
    with pytest.raises(ArtifactNotFound):
        store.tag("demo:base", second)


def test_resolve(store: Store, packing: Packing) -> None:
    digest = pack(store, packing("demo:base"))
    assert store.resolve(parse_reference("demo:base")) == digest
    assert store.resolve(parse_reference(f"demo@{digest}")) == digest
    assert store.resolve(DigestSource(digest[7:15])) == digest
    for source in (parse_reference("demo"), DigestSource("0" * 20), parse_reference("demo@" + digest_of(b""))):
        with pytest.raises(ArtifactNotFound):
            store.resolve(source)
    pack(store, packing("demo:other", args="quiet"))
    with pytest.raises(InvalidReference, match="ambiguous"):
        store.resolve(DigestSource(""))


def test_artifact_is_read_and_checked(store: Store, packing: Packing) -> None:
    artifact = store.artifact(pack(store, packing("demo:base")))
    assert artifact.oci.artifact_type == media_types.MANIFEST
    assert artifact.oci.layers[0].media_type == media_types.MANIFEST
    assert artifact.layer(artifact.manifest.kernel.ref).media_type == media_types.KERNEL
    assert artifact.total_bytes == len(artifact.oci_bytes) + 2 + sum(each.size for each in artifact.oci.layers)
    for each in artifact.blobs:
        store.verify_blob(each)
    with pytest.raises(BlobNotFound):
        artifact.layer(digest_of(b"x"))
    path = store.blob_path(artifact.digest)
    path.write_bytes(artifact.oci_bytes.replace(b"disk", b"disc").replace(b"kernel", b"kernal"))
    with pytest.raises(DigestMismatch):
        store.artifact(artifact.digest)
    path.unlink()
    with pytest.raises(ArtifactNotFound):
        store.artifact(artifact.digest)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (media_types.KERNEL, media_types.INITRD, InvalidManifest),
        (media_types.INITRD, "text/plain", InvalidManifest),
        (
            '"layers":[{"mediaType":"application/vnd.ovms.manifest',
            '"layers":[{"mediaType":"text/plain',
            InvalidManifest,
        ),
        ('"artifactType":"application/vnd.ovms', '"artifactType":"application/vnd.other', UnsupportedManifest),
        ('"schemaVersion":2', '"schemaVersion":1', InvalidManifest),
        ('"size":', '"size":-', InvalidManifest),
        ('"layers":', '"layers":{},"old":', InvalidManifest),
    ],
)
def test_wrong_oci_manifests_are_refused(store: Store, packing: Packing, old: str, new: str, error: type) -> None:
    artifact = store.artifact(pack(store, packing()))
    text = artifact.oci_bytes.decode()
    assert old in text
    digest = store.put_bytes(text.replace(old, new).encode())
    with pytest.raises(error):
        store.artifact(digest)


def test_an_artifact_is_listed_only_when_its_blobs_are_here(store: Store, packing: Packing) -> None:
    artifact = store.artifact(pack(store, packing()))
    blobs = {each.content_digest: StoredBlob(size_bytes=each.size) for each in artifact.blobs}
    other = artifact.manifest_bytes.replace(b"console=ttyS0", b"quiet")
    with pytest.raises(BlobNotFound):
        store.put_artifact(compose(decode_manifest(other), other, blobs), "demo:broken")
    assert [each.name for each in store.list()] == ["demo:base"]


def test_remove_unreferenced_keeps_what_is_listed_kept_pinned_or_under_way(store: Store, packing: Packing) -> None:
    first = pack(store, packing("demo:one"))
    second = pack(store, packing("demo:two", initrd=None, args="quiet"))
    assert store.remove_unreferenced() == []
    store.untag("demo:one")
    kernel = store.artifact(first).kernel.content_digest
    store.pin(first)
    assert store.remove_unreferenced() == []
    store.unpin(first)
    assert store.remove_unreferenced(keep={first}) == []
    under_way = store.put_bytes(b"a layer whose manifest is yet to come")
    removed = {each.what for each in store.remove_unreferenced()}
    assert first in removed
    assert not removed & {kernel, second, under_way}
    assert store.artifact(second).kernel.content_digest == kernel
    with pytest.raises(ArtifactNotFound):
        store.artifact(first)
    store.discard([under_way])
    assert not store.has_blob(under_way)


def test_two_that_store_the_same_blob_do_not_take_it_from_each_other(store: Store) -> None:
    with store.adding() as first:
        first.append(store.put_bytes(b"shared"))
        with pytest.raises(ZeroDivisionError), store.adding() as second:  # noqa: PT012 - it is the block that fails
            second.append(store.put_bytes(b"shared"))
            raise ZeroDivisionError
        assert store.has_blob(digest_of(b"shared"))
        assert store.remove_unreferenced() == []
    assert [each.what for each in store.remove_unreferenced()] == [digest_of(b"shared")]


def test_pins_count_and_other_processes_see_them(store: Store) -> None:
    other = Store(store.root)  # its pins are a file of its own, as another process's are
    other.create()
    digest = store.put_bytes(b"blob")
    store.pin(digest)
    store.discard([digest])
    store.pin(digest)
    store.unpin(digest)
    assert other.remove_unreferenced() == []
    store.unpin(digest)
    assert [each.what for each in other.remove_unreferenced()] == [digest]
    assert not list((store.root / "ovms.blobs" / "pins").iterdir())


def test_nothing_is_removed_while_a_manifest_is_damaged(store: Store, packing: Packing) -> None:
    digest = pack(store, packing())
    extra = store.put_bytes(b"extra")
    store._pins.drop_fresh([extra])
    path = store.blob_path(digest)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptStore, match="damaged"):
        store.remove_unreferenced()
    assert store.has_blob(extra)
    store.unlist(digest)
    assert len(store.remove_unreferenced()) > 3


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schemaVersion":2}', '{"schemaVersion":2,"manifests":[{"digest":"x"}]}']
)
def test_a_damaged_index_is_told(store: Store, content: str) -> None:
    (store.root / "index.json").write_text(content)
    with pytest.raises(CorruptStore, match=r"index\.json"):
        store.list()
    with pytest.raises(CorruptStore):
        Store(store.root).create()


@pytest.mark.parametrize("content", ["", "{}", '{"imageLayoutVersion":"2.0.0"}'])
def test_another_layout_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "oci-layout").write_text(content)
    with pytest.raises(CorruptStore, match="oci-layout"):
        Store(tmp_path).create()


def test_what_others_wrote_into_the_index_is_kept(store: Store, packing: Packing) -> None:
    path = store.root / "index.json"
    foreign = {
        "mediaType": media_types.OCI_MANIFEST,
        "digest": digest_of(b"foreign"),
        "size": 7,
        "platform": {"architecture": "arm64", "os": "linux"},
        "annotations": {"org.example": "kept", media_types.ANNOTATION_REF_NAME: "demo:base"},
    }
    path.write_text(json.dumps({"schemaVersion": 2, "manifests": [foreign], "x-unknown": [1, 2]}))
    pack(store, packing("demo:base"))
    index = json.loads(path.read_text())
    assert index["x-unknown"] == [1, 2]
    assert index["manifests"][0] == {**foreign, "annotations": {"org.example": "kept"}}


def test_threads_share_a_store(store: Store) -> None:
    digests: list[Digest] = []

    def work(number: int) -> None:
        for index in range(10):
            digests.append(store.put_bytes(f"{number} {index % 3}".encode()))
            store.remove_unreferenced()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(digests) == 40
    assert all(store.has_blob(digest) for digest in digests)
