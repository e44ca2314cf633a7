"""Extracting and chaining disk layers: real qcow2 chains, and layers made to break out of theirs."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zstandard

from cache import disk_image, disk_layers
from cache.artifact import Artifact
from cache.blob_names import file_name
from cache.compose import StoredBlob, compose
from cache.disk_image import ExtractedImage, LayerBelow, WantedLayer
from cache.disk_layers import materialise_disks
from cache.pack import pack
from cache.store import Store
from spec import media_types
from spec.digest import Digest
from spec.errors import BlobNotFound, DigestMismatch, OvmsError, SizeMismatch, UnsafeArchive, UnsafeDisk
from spec.manifest import decode_manifest
from spec.qcow2 import build_overlay_header
from spec.reference import parse_reference
from tests.cache.conftest import Packing, run

MIB = 1 << 20
RAW = os.urandom(8192) + bytes(MIB - 8192)


def tar_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


@dataclass
class Layers:
    """Builds an artifact out of layer blobs that need not make sense."""

    store: Store
    entries: list[dict[str, object]] = field(default_factory=list)
    blobs: dict[Digest, StoredBlob] = field(default_factory=dict)

    def add(
        self, blob: bytes, size: int, disk_format: str = "qcow2", media_type: str = media_types.DISK_LAYER
    ) -> Digest:
        digest = self.store.put_bytes(blob)
        self.blobs[digest] = StoredBlob(size_bytes=len(blob), disk_media_type=media_type)
        self.entries.append({"ref": digest, "format": disk_format, "size": size})
        return digest

    def add_image(self, image: bytes, disk_format: str = "qcow2", name: str = "disk") -> Digest:
        return self.add(tar_of((name, image)), len(image), disk_format)

    def artifact(self) -> Artifact:
        kernel = self.store.put_bytes(b"kernel")
        self.blobs[kernel] = StoredBlob(size_bytes=6)
        manifest = {
            "schemaVersion": 1,
            "mediaType": media_types.MANIFEST,
            "name": "a",
            "version": "1",
            "kernel": {"ref": kernel},
            "diskLayers": self.entries,
        }
        data = json.dumps(manifest).encode()
        self.store.put_bytes(data)
        return self.store.artifact(self.store.put_artifact(compose(decode_manifest(data), data, self.blobs), "a:1"))


@pytest.fixture
def layers(store: Store) -> Layers:
    return Layers(store)


def refused(layers: Layers, error: type[OvmsError], match: str) -> None:
    artifact = layers.artifact()
    with pytest.raises(error, match=match):
        materialise_disks(layers.store, artifact)
    assert not list(layers.store.temp.directory.iterdir())
    tops = {each.name for each in layers.store.disks_dir.iterdir()}
    assert len(tops) < len(artifact.disk_layers)


@pytest.mark.real
def test_a_real_chain(store: Store, packing: Packing, qemu_disk: tuple[Path, Path]) -> None:
    artifact = store.artifact(pack(store, packing(disks=qemu_disk)))
    chain = materialise_disks(store, artifact)
    assert chain is not None
    assert (chain.format, chain.virtual_size_bytes, chain.layers) == ("qcow2", 8 * MIB, 2)
    run("qemu-img", "check", chain.path)
    run("qemu-img", "compare", chain.path, qemu_disk[1])
    info = json.loads(run("qemu-img", "info", "--backing-chain", "--output=json", chain.path))
    assert [each["filename"] for each in info] == [str(chain.path), info[0]["full-backing-filename"]]
    assert info[0]["backing-filename-format"] == "qcow2"
    assert chain.path.stat().st_mode & 0o777 == 0o444
    before = chain.path.stat()
    assert materialise_disks(store, artifact) == chain
    assert chain.path.stat() == before, "extracted once"


@pytest.mark.real
def test_a_chain_on_a_raw_base_with_our_own_overlay_on_top(store: Store, packing: Packing, tmp_path: Path) -> None:
    base, diff = tmp_path / "base", tmp_path / "diff"
    base.write_bytes(RAW)
    diff.write_bytes(build_overlay_header("base", "raw", 2 * MIB))
    chain = materialise_disks(store, store.artifact(pack(store, packing(disks=(base, diff)))))
    assert chain is not None
    assert chain.virtual_size_bytes == 2 * MIB
    overlay = tmp_path / "overlay"
    overlay.write_bytes(build_overlay_header(str(chain.path), chain.format, chain.virtual_size_bytes))
    run("qemu-img", "check", overlay)
    run("qemu-img", "convert", "-O", "raw", overlay, tmp_path / "flat")
    assert (tmp_path / "flat").read_bytes() == RAW.ljust(2 * MIB, b"\0")


def test_no_disk(store: Store, packing: Packing) -> None:
    assert materialise_disks(store, store.artifact(pack(store, packing()))) is None


@pytest.mark.parametrize(
    ("compress", "media_type"),
    [
        (bytes, media_types.DISK_LAYER),
        (gzip.compress, media_types.DISK_LAYER_GZIP),
        (lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]), media_types.DISK_LAYER_GZIP),
        (zstandard.compress, media_types.DISK_LAYER_ZSTD),
        (lambda data: zstandard.compress(data[:700]) + zstandard.compress(data[700:]), media_types.DISK_LAYER_ZSTD),
    ],
)
def test_compressed_layers_come_out_sparse(layers: Layers, compress: Callable[[bytes], bytes], media_type: str) -> None:
    layers.add(compress(tar_of(("./some/disk.img", RAW))), len(RAW), "raw", media_type)
    chain = materialise_disks(layers.store, layers.artifact())
    assert chain is not None
    assert chain.path.read_bytes() == RAW
    assert chain.path.stat().st_blocks * 512 <= 64 * 1024


@pytest.mark.parametrize("cut", [1, 5, 9, 200, 4000])
@pytest.mark.parametrize(
    ("compress", "media_type"),
    [(gzip.compress, media_types.DISK_LAYER_GZIP), (zstandard.compress, media_types.DISK_LAYER_ZSTD)],
)
def test_truncated_compression(layers: Layers, compress: Callable[[bytes], bytes], media_type: str, cut: int) -> None:
    blob = compress(tar_of(("disk", RAW)))
    layers.add(blob[:-cut], len(RAW), "raw", media_type)
    refused(layers, UnsafeArchive, r"truncated|decompress")


@pytest.mark.parametrize(
    ("blob", "media_type"),
    [
        (gzip.compress(tar_of(("disk", RAW))) + b"x", media_types.DISK_LAYER_GZIP),
        (zstandard.compress(tar_of(("disk", RAW))) + b"x" * 20, media_types.DISK_LAYER_ZSTD),
        (tar_of(("disk", RAW)) + b"x", media_types.DISK_LAYER),
        (tar_of(("disk", RAW))[:-3000], media_types.DISK_LAYER_GZIP),
        (tar_of(("disk", RAW)), media_types.DISK_LAYER_ZSTD),
        (gzip.compress(tar_of(("disk", RAW))), media_types.DISK_LAYER),
        (tar_of(), media_types.DISK_LAYER),
        (tar_of(("disk", RAW), ("other", b"")), media_types.DISK_LAYER),
        (tar_of(("../disk", RAW)), media_types.DISK_LAYER),
        (tar_of(("/disk", RAW)), media_types.DISK_LAYER),
        (tar_of(("disk", b""), kind=tarfile.SYMTYPE), media_types.DISK_LAYER),
        (tar_of(("disk", b""), kind=tarfile.BLKTYPE), media_types.DISK_LAYER),
    ],
)
def test_archives_that_are_not_one_plain_file(layers: Layers, blob: bytes, media_type: str) -> None:
    layers.add(blob, len(RAW), "raw", media_type)
    refused(layers, UnsafeArchive, "layer|archive|member|tar header")


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_decompression_bombs(layers: Layers, compress: Callable[[bytes], bytes]) -> None:
    media_type = media_types.DISK_LAYER_GZIP if compress is gzip.compress else media_types.DISK_LAYER_ZSTD
    layers.add(compress(tar_of(("disk", RAW)) + bytes(64 * MIB)), len(RAW), "raw", media_type)
    refused(layers, UnsafeArchive, "end of the archive")


def test_the_size_must_be_the_manifests(layers: Layers) -> None:
    layers.add(tar_of(("disk", RAW)), len(RAW) - 512, "raw")
    refused(layers, SizeMismatch, "the manifest says")


def test_an_extracted_layer_of_another_size_or_format_in_another_manifest(layers: Layers) -> None:
    layers.add_image(RAW, "raw")
    materialise_disks(layers.store, layers.artifact())
    for entry, error in (({"size": 512}, SizeMismatch), ({"format": "qcow2"}, UnsafeDisk)):
        other = Layers(layers.store, [{**layers.entries[0], **entry}], layers.blobs)
        with pytest.raises(error, match="the manifest says"):
            materialise_disks(layers.store, other.artifact())


@pytest.mark.parametrize(
    ("image", "disk_format", "match"),
    [
        (build_overlay_header("/etc/passwd", "raw", MIB), "qcow2", "base and has a backing file"),
        (build_overlay_header("b", "raw", MIB), "raw", "called raw and is qcow2"),
        (RAW, "qcow2", "not a qcow2"),
        (RAW[:1000], "raw", "whole sectors"),
        (b"", "raw", "whole sectors"),
    ],
)
def test_bases_that_are_unsafe(layers: Layers, image: bytes, disk_format: str, match: str) -> None:
    layers.add_image(image, disk_format)
    refused(layers, UnsafeDisk, match)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("/etc/passwd", MIB),
        ("../../secret", MIB),
        ("sha256-" + "0" * 64, MIB),
        ("other", MIB),
        ("./disk", MIB),
        ("json:{}", MIB),
        ("nbd://host/x", MIB),
        ("disk", MIB - 512),
    ],
)
def test_diffs_that_are_unsafe(layers: Layers, name: str, size: int) -> None:
    layers.add_image(RAW, "raw")
    layers.add_image(build_overlay_header(name, "raw", size))
    refused(layers, UnsafeDisk, "not the layer below|over one of")


def test_a_diff_without_backing_file_or_with_a_raw_one(layers: Layers) -> None:
    layers.add_image(RAW, "raw")
    image = bytearray(build_overlay_header("disk", "raw", MIB))
    image[8:20] = bytes(12)
    layers.add_image(bytes(image))
    refused(layers, UnsafeDisk, "not the layer below")


@pytest.mark.parametrize("feature", [1 << 1, 1 << 2, 1 << 4, 1 << 30])
def test_features_that_lead_elsewhere(layers: Layers, feature: int) -> None:
    layers.add_image(RAW, "raw")
    image = bytearray(build_overlay_header("disk", "raw", MIB))
    image[72:80] = feature.to_bytes(8, "big")
    layers.add_image(bytes(image))
    refused(layers, UnsafeDisk, "layer sha256")


@pytest.mark.parametrize("canonical", [True, False])
def test_both_names_of_the_layer_below_are_right(layers: Layers, canonical: bool) -> None:
    below = layers.add_image(RAW, "raw", name="dir/base.img")
    layers.add_image(build_overlay_header(file_name(below) if canonical else "base.img", "qcow2", MIB))
    chain = materialise_disks(layers.store, layers.artifact())
    assert chain is not None
    assert b"qcow2" not in chain.path.read_bytes()[112:144], "the format is ours, not what the layer claims"


def test_damaged_and_missing_blobs(layers: Layers) -> None:
    digest = layers.add_image(RAW, "raw")
    artifact = layers.artifact()
    path = layers.store.blob_path(digest)
    data = bytearray(path.read_bytes())
    for offset in (0, 600, 5000, len(data) - 1):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        with pytest.raises(DigestMismatch):
            materialise_disks(layers.store, artifact)
    path.write_bytes(data[:-1])
    with pytest.raises(SizeMismatch):
        materialise_disks(layers.store, artifact)
    path.unlink()
    with pytest.raises(BlobNotFound):
        materialise_disks(layers.store, artifact)
    assert not list(layers.store.disks_dir.iterdir())
    assert not list(layers.store.temp.directory.iterdir())


def test_an_extracted_image_that_was_changed_or_moved_is_made_again(layers: Layers) -> None:
    layers.add_image(RAW, "raw")
    artifact = layers.artifact()
    chain = materialise_disks(layers.store, artifact)
    assert chain is not None
    chain.path.chmod(0o600)
    chain.path.write_bytes(RAW[::-1])
    materialise_disks(layers.store, artifact)
    assert chain.path.read_bytes() == RAW
    root = layers.store.root
    root.rename(root.with_name("moved"))
    moved = materialise_disks(Store(root.with_name("moved")), artifact)
    assert moved is not None
    assert moved.path.read_bytes() == RAW
    root.with_name("moved").rename(root)


def extract(root: Path, digest: Digest, queue: multiprocessing.Queue[int]) -> None:
    store = Store(root)
    extractions = []
    extract_image = disk_image.extract_image

    def counting(wanted: WantedLayer, below: LayerBelow | None, target: Path) -> ExtractedImage:
        extractions.append(target)
        return extract_image(wanted, below, target)

    vars(disk_layers)["extract_image"] = counting
    materialise_disks(store, store.artifact(digest))
    queue.put(len(extractions))


def test_processes_that_ask_at_once_extract_once(layers: Layers) -> None:
    layers.add_image(RAW * 8, "raw")
    artifact = layers.artifact()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=extract, args=(layers.store.root, artifact.digest, queue)) for _ in range(5)]
    for each in processes:
        each.start()
    counts = [queue.get(timeout=30) for _ in processes]
    for each in processes:
        each.join()
    queue.close()
    queue.join_thread()
    assert sum(counts) == 1
    assert [each.name for each in layers.store.disks_dir.iterdir()] == [artifact.disk_layers[0].digest[7:]]


def test_remove_unreferenced_removes_extracted_disks(layers: Layers) -> None:
    layers.add_image(RAW, "raw")
    materialise_disks(layers.store, layers.artifact())
    (layers.store.disks_dir / "dead.lock").touch()
    assert layers.store.remove_unreferenced() == []
    digest = layers.store.resolve(parse_reference("a:1"))
    layers.store.untag("a:1")
    with layers.store.pinned(digest):
        assert layers.store.remove_unreferenced() == []
    assert any(each.what.startswith("disks/") for each in layers.store.remove_unreferenced())
    assert not list(layers.store.disks_dir.iterdir())
