"""Packing files, and what is refused before a byte is copied."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import msgspec
import pytest

from cache.blob_names import file_name
from cache.pack import pack
from cache.store import Store
from spec import media_types
from spec.errors import FileMissing, InvalidInput, InvalidManifest, OvmsError, UnsafeDisk
from spec.manifest import unknown_fields
from spec.qcow2 import HEAD_BYTES, build_overlay_header, parse_header
from tests.cache.conftest import Packing, run


def image_in(store: Store, digest: str) -> bytes:
    data = store.blob_path(digest).read_bytes()  # type: ignore[arg-type]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        [member] = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None
        return content.read()


def test_pack_without_disk(store: Store, packing: Packing, kernel: Path) -> None:
    artifact = store.artifact(pack(store, packing("demo:base")))
    manifest = artifact.manifest
    assert (manifest.name, manifest.version, manifest.kernel.args) == ("demo", "base", "console=ttyS0")
    assert manifest.metadata.created == "2025-09-09T00:00:00Z"
    assert manifest.runtime_hints.default_memory_bytes == 64 << 20
    assert manifest.runtime_hints.default_cpus == 2
    assert msgspec.json.decode(artifact.manifest_bytes)["devices"] == [
        {"type": "ivshmem", "name": "mmio0", "size": 1 << 20}
    ]
    assert unknown_fields(artifact.manifest_bytes) == []
    assert store.verify_blob(artifact.kernel).read_bytes() == kernel.read_bytes()
    assert [each.media_type for each in artifact.oci.layers] == [
        media_types.MANIFEST,
        media_types.KERNEL,
        media_types.INITRD,
    ]


@pytest.mark.real
def test_pack_a_disk_of_two_layers(store: Store, packing: Packing, qemu_disk: tuple[Path, Path]) -> None:
    base, diff = qemu_disk
    artifact = store.artifact(pack(store, packing(disks=qemu_disk)))
    low, high = artifact.disk_layers
    assert image_in(store, low.digest) == base.read_bytes()
    packed = image_in(store, high.digest)
    header = parse_header(packed[:HEAD_BYTES])
    assert header.backing_name == file_name(low.content_digest)
    assert str(base.parent).encode() not in packed
    assert packed[HEAD_BYTES:] == diff.read_bytes()[HEAD_BYTES:]
    assert [each.size for each in artifact.manifest.disk_layers] == [base.stat().st_size, diff.stat().st_size]
    assert high.annotations[media_types.ANNOTATION_DISK_FORMAT] == "qcow2"


def test_the_same_files_make_the_same_digest_on_every_host(store: Store, packing: Packing, tmp_path: Path) -> None:
    digests = set()
    for place in ("here", "a/longer/path/there"):
        directory = tmp_path / place
        directory.mkdir(parents=True)
        base, diff = directory / f"{directory.name}.raw", directory / "diff"
        base.write_bytes(b"base" * 1024)
        diff.write_bytes(build_overlay_header(str(base), "raw", 4096))
        os.utime(base, (1, len(place)))
        digests.add(pack(store, packing(disks=(base, diff))))
    assert len(digests) == 1
    assert store.artifact(digests.pop()).oci.annotations == {}


def test_a_sparse_raw_disk_stays_sparse(store: Store, packing: Packing, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.write(b"boot")
        file.truncate(64 << 20)
    artifact = store.artifact(pack(store, packing(disks=(disk,))))
    assert artifact.manifest.disk_layers[0].format == "raw"
    assert store.verify_blob(artifact.disk_layers[0]).stat().st_blocks * 512 < 4 << 20


def test_an_elf_kernel(store: Store, packing: Packing, kernel: Path) -> None:
    kernel.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + bytes(100))
    pack(store, packing())


@pytest.mark.parametrize(
    "content", [b"", b"not a kernel", b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00", b"\x7fELF\x02\x01"]
)
def test_what_is_no_kernel(store: Store, packing: Packing, kernel: Path, content: bytes) -> None:
    kernel.write_bytes(content)
    with pytest.raises(InvalidInput, match="not a kernel"):
        pack(store, packing())


def refused(store: Store, error: type[OvmsError], match: str, request: object) -> None:
    with pytest.raises(error, match=match):
        pack(store, request)  # type: ignore[arg-type]
    assert not list((store.root / "blobs" / "sha256").iterdir())
    assert store.list() == []


def test_missing_files_and_directories(store: Store, packing: Packing, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for fields in ({"kernel": gone}, {"initrd": gone}, {"disks": (gone,)}):
        refused(store, FileMissing, "gone", packing(**fields))
        [(name, value)] = fields.items()
        directory = (tmp_path,) if isinstance(value, tuple) else tmp_path
        refused(store, InvalidInput, "not a regular file", packing(**{name: directory}))


def test_disks_that_do_not_stack(store: Store, packing: Packing, tmp_path: Path) -> None:
    base, other, diff, odd = (tmp_path / name for name in ("base", "other", "diff", "odd"))
    for path in (base, other):
        path.write_bytes(bytes(4096))
    odd.write_bytes(bytes(1000))
    diff.write_bytes(build_overlay_header("base", "raw", 4096))
    for disks, match in (
        ((diff,), "first --disk is the base"),
        ((base, other), "no backing file"),
        ((other, diff), "not on .*other"),
        ((base, diff, diff), "not on .*diff"),
        ((odd,), "whole sectors"),
    ):
        refused(store, UnsafeDisk, match, packing(disks=disks))
    pack(store, packing(disks=(base, diff)))
    link = tmp_path / "link"
    link.symlink_to(base)
    pack(store, packing(disks=(link, diff)))
    store.remove_unreferenced()


def test_a_smaller_or_dirty_or_damaged_diff(store: Store, packing: Packing, tmp_path: Path) -> None:
    base, diff = tmp_path / "base", tmp_path / "diff"
    base.write_bytes(bytes(8192))
    good = build_overlay_header("base", "raw", 8192)
    for image, match in (
        (build_overlay_header("base", "raw", 4096), "smaller"),
        (good[:79] + b"\x01" + good[80:], "closed cleanly"),
        (good[:79] + b"\x04" + good[80:], "external file"),
        (good[:1000], "truncated"),
        (good[:3], "whole sectors"),
    ):
        diff.write_bytes(image)
        refused(store, UnsafeDisk, match, packing(disks=(base, diff)))


def test_what_the_manifest_can_not_say_is_refused_and_nothing_is_left(store: Store, packing: Packing) -> None:
    refused(store, InvalidManifest, "args", packing(args="x" * 5000))
    refused(store, InvalidManifest, "defaultMemoryBytes", packing(memory_bytes=1))


@pytest.mark.real
def test_qemu_reads_a_packed_chain_where_it_lies_by_canonical_names(
    store: Store, packing: Packing, qemu_disk: tuple[Path, Path], tmp_path: Path
) -> None:
    artifact = store.artifact(pack(store, packing(disks=qemu_disk)))
    for layer in artifact.disk_layers:
        (tmp_path / file_name(layer.content_digest)).write_bytes(image_in(store, layer.digest))
    top = tmp_path / file_name(artifact.disk_layers[-1].content_digest)
    run("qemu-img", "check", top)
    run("qemu-img", "compare", top, qemu_disk[1])
