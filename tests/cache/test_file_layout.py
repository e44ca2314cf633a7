"""Import and export of RFC §8: round trips, and layouts that try to reach out of themselves."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.blob_names import digest_in, file_name
from cache.disk_layers import materialise_disks
from cache.file_layout import export_artifact, import_artifact
from cache.pack import pack
from cache.store import Store
from spec import media_types
from spec.digest import digest_of
from spec.errors import (
    ArtifactNotFound,
    BlobNotFound,
    Conflict,
    DigestMismatch,
    FileMissing,
    InvalidManifest,
    OvmsError,
    UnsafeArchive,
    UnsupportedManifest,
)
from spec.manifest import unknown_fields
from spec.reference import parse_reference
from tests.cache.conftest import Packing

KERNEL = b"kernel" * 100
RAW = os.urandom(4096)


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """A store of somebody else."""
    store = Store(tmp_path / "other")
    store.create()
    return store


def tar_with(name: str, data: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout as another implementation would write it: fields we do not know, odd spacing, a compressed layer."""
    root = tmp_path / "layout"
    (root / "blobs").mkdir(parents=True)
    blobs = [KERNEL, gzip.compress(tar_with("disk.img", RAW))]
    for blob in blobs:
        (root / "blobs" / file_name(digest_of(blob))).write_bytes(blob)
    manifest = {
        "x-first": {"kept": [1, 2.50]},
        "schemaVersion": 1,
        "mediaType": media_types.MANIFEST,
        "name": "example/ubuntu-base",
        "version": "24.04",
        "kernel": {"ref": digest_of(KERNEL), "args": "ro"},
        "diskLayers": [{"ref": digest_of(blobs[1]), "format": "raw", "size": len(RAW)}],
    }
    (root / "manifest.json").write_text(json.dumps(manifest, indent=7) + "\n\n")
    return root


def tar_of_directory(root: Path, target: Path, prefix: str = "") -> Path:
    with tarfile.open(target, "w") as tar:
        for path in sorted(root.rglob("*"), reverse=True):
            tar.add(path, prefix + str(path.relative_to(root)), recursive=False)
    return target


def test_a_layout_does_not_call_itself_by_the_name_of_a_registry(store: Store, layout: Path) -> None:
    manifest = layout / "manifest.json"
    manifest.write_text(manifest.read_text().replace("example/ubuntu-base", "registry.example.com/team/app"))
    digest = import_artifact(store, layout, None)
    assert [(each.name, each.digest) for each in store.list()] == [(None, digest)]
    import_artifact(store, layout, parse_reference("registry.example.com/team/app:1"))
    assert [each.name for each in store.list()] == ["registry.example.com/team/app:1"]


def test_import_keeps_the_manifest_byte_for_byte(store: Store, layout: Path) -> None:
    digest = import_artifact(store, layout, None)
    artifact = store.artifact(digest)
    assert artifact.manifest_bytes == (layout / "manifest.json").read_bytes()
    assert unknown_fields(artifact.manifest_bytes) == ["$.x-first"]
    assert artifact.disk_layers[0].media_type == media_types.DISK_LAYER_GZIP
    assert [each.name for each in store.list()] == ["example/ubuntu-base:24.04"]
    chain = materialise_disks(store, artifact)
    assert chain is not None
    assert chain.path.read_bytes() == RAW


def test_directory_and_tar_with_and_without_prefix_are_the_same_artifact(
    store: Store, layout: Path, tmp_path: Path
) -> None:
    inside = tmp_path / "outer"
    inside.mkdir()
    digest = import_artifact(store, layout, parse_reference("a:1"))
    assert import_artifact(store, tar_of_directory(layout, tmp_path / "a.tar"), parse_reference("a:2")) == digest
    assert import_artifact(store, tar_of_directory(layout, tmp_path / "b.tar", "./ovm/"), None) == digest
    layout.rename(inside / "ovm")
    assert import_artifact(store, inside, parse_reference(f"a@{digest}")) == digest
    with pytest.raises(DigestMismatch, match="holds"):
        import_artifact(store, inside, parse_reference("a@" + digest_of(b"")))


@pytest.mark.parametrize("name", ["exported", "exported.tar"])
def test_export_then_import_gives_the_same_digest(
    store: Store, other: Store, layout: Path, packing: Packing, tmp_path: Path, name: str
) -> None:
    (layout / "metadata").mkdir()
    (layout / "metadata" / "provenance.json").write_bytes(b'{"opaque": true}')
    for digest in (import_artifact(store, layout, None), pack(store, packing())):
        target = tmp_path / name
        export_artifact(store, digest, target)
        assert import_artifact(other, target, None) == digest
        target.rename(tmp_path / f"{name}-{digest[7:]}")
    names = {str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*") if "oci-manifest" in each.name}
    assert names == set(), "nothing more than RFC §8 has"
    again = tmp_path / "again"
    export_artifact(other, import_artifact(other, layout, None), again)
    assert (again / "metadata" / "provenance.json").read_bytes() == b'{"opaque": true}'
    assert (again / "manifest.json").read_bytes() == (layout / "manifest.json").read_bytes()
    assert {each.name for each in (again / "blobs").iterdir()} == {each.name for each in (layout / "blobs").iterdir()}


def test_what_only_the_oci_manifest_says_travels_along(
    store: Store, other: Store, layout: Path, tmp_path: Path
) -> None:
    plain = store.artifact(import_artifact(store, layout, None))
    extra = store.put_bytes(b"SBOM")
    document = json.loads(plain.oci_bytes)
    document["annotations"] = {"org.example": "kept"}
    document["x-unknown"] = 1
    document["layers"].append({"mediaType": "text/spdx", "digest": extra, "size": 4})
    digest = store.put_artifact(json.dumps(document).encode(), "a:1")
    export_artifact(store, digest, tmp_path / "out")
    assert import_artifact(other, tmp_path / "out", None) == digest
    assert other.read_blob(other.artifact(digest).oci.layers[-1]) == b"SBOM"

    path = tmp_path / "out" / "metadata" / "oci-manifest.json"
    path.write_bytes(path.read_bytes().replace(b"text/spdx", b"text/spdy"))
    assert import_artifact(other, tmp_path / "out", None) != digest
    (tmp_path / "out" / "manifest.json").write_bytes(plain.manifest_bytes + b" ")
    with pytest.raises(DigestMismatch):
        import_artifact(other, tmp_path / "out", None)
    document["artifactType"] = "application/vnd.other"
    path.write_text(json.dumps(document))
    with pytest.raises(UnsupportedManifest):
        import_artifact(other, tmp_path / "out", None)


def test_an_export_replaces_nothing_and_leaves_nothing(store: Store, packing: Packing, tmp_path: Path) -> None:
    digest = pack(store, packing())
    place = tmp_path / "place"
    (place / "full").mkdir(parents=True)
    (place / "full" / "file").touch()
    (place / "there.tar").touch()
    (place / "dangling").symlink_to("nowhere")
    (place / "empty").mkdir()
    before = sorted(place.rglob("*"))
    for name in ("full", "there.tar", "dangling"):
        with pytest.raises(Conflict, match="exists"):
            export_artifact(store, digest, place / name)
    with pytest.raises(FileMissing):
        export_artifact(store, digest, place / "no" / "such" / "place")
    with pytest.raises(ArtifactNotFound):
        export_artifact(store, digest_of(b""), place / "new")
    kernel = store.blob_path(store.artifact(digest).kernel.content_digest)
    data = kernel.read_bytes()
    for name in ("new", "new.tar"):
        kernel.write_bytes(data[:-1] + b"x")
        with pytest.raises(DigestMismatch):
            export_artifact(store, digest, place / name)
    kernel.unlink()
    with pytest.raises(BlobNotFound):
        export_artifact(store, digest, place / "new")
    assert sorted(place.rglob("*")) == before
    kernel.write_bytes(data)
    export_artifact(store, digest, place / "empty")
    assert (place / "empty" / "manifest.json").exists()


def kernel_path(layout: Path) -> Path:
    return layout / "blobs" / file_name(digest_of(KERNEL))


def link_kernel(layout: Path) -> None:
    kernel_path(layout).rename(layout.parent / "elsewhere")
    kernel_path(layout).symlink_to(layout.parent / "elsewhere")


def link_blobs(layout: Path) -> None:
    (layout / "blobs").rename(layout.parent / "elsewhere")
    (layout / "blobs").symlink_to(layout.parent / "elsewhere")


def fifo_kernel(layout: Path) -> None:
    kernel_path(layout).unlink()
    os.mkfifo(kernel_path(layout))


def directory_kernel(layout: Path) -> None:
    kernel_path(layout).unlink()
    kernel_path(layout).mkdir()


def edit(old: str, new: str) -> Callable[[Path], object]:
    def apply(layout: Path) -> None:
        path = layout / "manifest.json"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return apply


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (link_kernel, UnsafeArchive),
        (link_blobs, UnsafeArchive),
        (fifo_kernel, UnsafeArchive),
        (directory_kernel, UnsafeArchive),
        (lambda layout: kernel_path(layout).unlink(), BlobNotFound),
        (lambda layout: kernel_path(layout).write_bytes(KERNEL[:-1]), DigestMismatch),
        (lambda layout: (layout / "manifest.json").unlink(), FileMissing),
        (lambda layout: (layout / "manifest.json").write_bytes(b" " * (5 << 20)), InvalidManifest),
        (edit('"schemaVersion": 1', '"schemaVersion": 2'), UnsupportedManifest),
        (edit('"name"', '"nome"'), InvalidManifest),
        (edit(digest_of(KERNEL), "registry.example/ovms/kernel"), BlobNotFound),
        (edit(digest_of(KERNEL), "sha256:../../../etc/passwd"), InvalidManifest),
    ],
)
def test_directories_that_are_refused(
    store: Store, layout: Path, change: Callable[[Path], object], error: type[OvmsError]
) -> None:
    change(layout)
    with pytest.raises(error):
        import_artifact(store, layout, None)
    assert not list((store.root / "blobs" / "sha256").iterdir())
    assert store.list() == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_anything_but_files_is_refused_whole(
    store: Store, layout: Path, tmp_path: Path, kind: bytes
) -> None:
    path = tar_of_directory(layout, tmp_path / "a.tar")
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("harmless")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UnsafeArchive, match="harmless"):
        import_artifact(store, path, None)
    assert not list((store.root / "blobs" / "sha256").iterdir())


def test_tars_that_are_no_layout(store: Store, layout: Path, tmp_path: Path) -> None:
    path = tar_of_directory(layout, tmp_path / "a.tar", "../")
    with pytest.raises(UnsafeArchive, match="leaves"):
        import_artifact(store, path, None)
    path = tar_of_directory(layout, tmp_path / "b.tar", "elsewhere/")
    with pytest.raises(FileMissing, match=r"manifest\.json"):
        import_artifact(store, path, None)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UnsafeArchive, match="truncated"):
        import_artifact(store, path, None)
    path.write_bytes(gzip.compress(b"x" * 5000))
    with pytest.raises(UnsafeArchive):
        import_artifact(store, path, None)
    with pytest.raises(FileMissing):
        import_artifact(store, tmp_path / "gone.tar", None)


def test_what_is_not_referred_to_is_ignored(store: Store, layout: Path) -> None:
    extra = digest_of(b"extra")
    (layout / "blobs" / file_name(extra)).write_bytes(b"extra")
    (layout / "README").write_text("a note")
    import_artifact(store, layout, None)
    assert not store.has_blob(extra)


def test_a_manifest_whose_name_is_no_reference_is_listed_without_name(store: Store, layout: Path) -> None:
    edit("example/ubuntu-base", "Ubuntu Base")(layout)
    digest = import_artifact(store, layout, None)
    assert [(each.name, each.digest) for each in store.list()] == [(None, digest)]


def test_blob_names() -> None:
    digest = digest_of(b"")
    assert digest_in(file_name(digest)) == digest
    for name in ("sha256-", "sha256-" + "A" * 64, "sha512-" + "a" * 64, "x", digest):
        assert digest_in(name) is None
