"""Snapshots as artifacts: what they keep of their base, what they add, what leaves with an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cache.artifact import Artifact
from cache.disk_layers import materialise_disks
from cache.file_layout import export_artifact, import_artifact
from cache.pack import pack
from cache.ramsnap import EncodedRamsnap
from cache.snapshot_artifact import store_snapshot
from cache.store import Store
from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import InternalError, InvalidManifest, UnsafeDisk
from spec.manifest import unknown_fields
from spec.qcow2 import build_overlay_header
from spec.reference import parse_reference
from tests.cache.conftest import Packing, run

RAM = b"an encoded ramsnap; what is in it is the codec's affair"


def snapshot(
    store: Store,
    base: Artifact,
    overlays: list[Path],
    name: str = "demo:fast",
    memory_bytes: int = 128 << 20,
    ram: bytes = RAM,
    parents: tuple[Digest, ...] = (),
) -> Artifact:
    digest = store.put_bytes(ram)
    header_digest = digest_of(b"header")
    ramsnap = EncodedRamsnap(
        digest=digest, size_bytes=len(ram), header_digest=header_digest, ram_bytes=1 << 20, stored_bytes=1 << 19
    )
    made = store_snapshot(
        store,
        base,
        ramsnap=ramsnap,
        parents=parents,
        overlays=overlays,
        reference=parse_reference(name),
        memory_bytes=memory_bytes,
        cpus=3,
        kernel_args="console=ttyS0 single",
        mlock_required=True,
    )
    return store.artifact(made)


def base_with_unknown_fields(store: Store, packing: Packing, **fields: object) -> Artifact:
    packed = store.artifact(pack(store, packing(**fields)))
    document = json.loads(packed.manifest_bytes)
    document["x-note"] = {"any": ["thing"]}
    document["runtimeHints"]["x-hint"] = 1
    document["kernel"]["x-kernel"] = True
    data = json.dumps(document).encode()
    text = packed.oci_bytes.decode()
    text = text.replace(digest_of(packed.manifest_bytes), store.put_bytes(data))
    text = text.replace(f'"size":{len(packed.manifest_bytes)},', f'"size":{len(data)},')
    return store.artifact(store.put_artifact(text.encode(), "demo:noted"))


def test_a_snapshot_without_disk(store: Store, packing: Packing) -> None:
    base = base_with_unknown_fields(store, packing)
    made = snapshot(store, base, [])
    assert unknown_fields(made.manifest_bytes) == ["$.kernel.x-kernel", "$.runtimeHints.x-hint", "$.x-note"]
    manifest = made.manifest
    assert (manifest.name, manifest.version) == ("demo", "fast")
    assert manifest.kernel.args == "console=ttyS0 single"
    assert manifest.kernel.ref == base.manifest.kernel.ref
    assert manifest.devices == base.manifest.devices
    assert manifest.metadata.author == "tests"
    assert manifest.metadata.created != base.manifest.metadata.created
    assert (manifest.runtime_hints.default_memory_bytes, manifest.runtime_hints.default_cpus) == (128 << 20, 3)
    assert manifest.ram_snapshot is not None
    assert manifest.ram_snapshot.mlock_required
    assert made.ramsnap is not None
    assert made.ramsnap.media_type == media_types.RAMSNAP
    assert made.ramsnap.annotations[media_types.ANNOTATION_RAMSNAP_HEADER] == digest_of(b"header")
    assert made.oci.subject == base.descriptor
    assert store.resolve(parse_reference("demo:fast")) == made.digest


def test_a_layer_brings_its_parents(store: Store, packing: Packing, tmp_path: Path) -> None:
    base = store.artifact(pack(store, packing()))
    bottom = snapshot(store, base, [], "demo:bottom")
    ref = digest_of(RAM)
    middle = snapshot(store, bottom, [], "demo:middle", ram=b"middle", parents=(ref,))
    top = snapshot(store, middle, [], "demo:top", ram=b"top", parents=(ref, digest_of(b"middle")))
    assert top.manifest.ram_snapshot is not None
    assert top.manifest.ram_snapshot.parents == [ref, digest_of(b"middle")]
    assert [each.digest for each in top.ramsnap_parents] == [ref, digest_of(b"middle")]
    assert {each.digest for each in top.blobs} >= {ref, digest_of(b"middle"), digest_of(b"top")}
    for parent in top.ramsnap_parents:
        assert parent.media_type == media_types.RAMSNAP
        assert parent.annotations[media_types.ANNOTATION_RAMSNAP_HEADER] == digest_of(b"header")
    for name in ("demo:base", "demo:bottom", "demo:middle"):
        store.untag(name)
    store.remove_unreferenced()
    assert all(store.has_blob(each.content_digest) for each in top.blobs)
    export_artifact(store, top.digest, tmp_path / "out.tar")
    other = Store(tmp_path / "other")
    other.create()
    assert import_artifact(other, tmp_path / "out.tar", None) == top.digest
    assert all(other.has_blob(each.content_digest) for each in top.blobs)


def test_a_layout_without_an_oci_manifest_brings_its_parents(store: Store, packing: Packing, tmp_path: Path) -> None:
    bottom = snapshot(store, store.artifact(pack(store, packing())), [], "demo:bottom")
    top = snapshot(store, bottom, [], "demo:top", ram=b"top", parents=(digest_of(RAM),))
    export_artifact(store, top.digest, tmp_path / "out")
    (tmp_path / "out" / "metadata" / "oci-manifest.json").unlink()
    other = Store(tmp_path / "other")
    other.create()
    made = other.artifact(import_artifact(other, tmp_path / "out", None))
    assert [each.digest for each in made.ramsnap_parents] == [digest_of(RAM)]
    assert all(other.has_blob(each.content_digest) for each in made.blobs)


@pytest.mark.real
def test_snapshots_of_snapshots_stack_their_overlays(
    store: Store, packing: Packing, qemu_disk: tuple[Path, Path], tmp_path: Path
) -> None:
    base = base_with_unknown_fields(store, packing, disks=qemu_disk)
    artifact = base
    for number in (1, 2):
        chain = materialise_disks(store, artifact)
        assert chain is not None
        overlay = tmp_path / f"overlay-{number}"
        overlay.write_bytes(build_overlay_header(str(chain.path), chain.format, chain.virtual_size_bytes))
        run("qemu-io", "-c", f"write -P {16 + number} {number}M 64k", overlay)
        artifact = snapshot(store, artifact, [overlay], f"demo:fast-{number}")
        assert str(tmp_path).encode() not in store.blob_path(artifact.disk_layers[-1].content_digest).read_bytes()
    chain = materialise_disks(store, artifact)
    assert chain is not None
    assert chain.layers == 4
    run("qemu-io", "-r", "-c", "read -P 17 1M 64k", "-c", "read -P 18 2M 64k", "-c", "read -P 2 512k 64k", chain.path)
    for other_than_the_last in ("demo:base", "demo:noted", "demo:fast-1"):
        store.untag(other_than_the_last)
    store.remove_unreferenced()
    assert materialise_disks(store, artifact) == chain, "a snapshot needs nothing of its base's manifest"


@pytest.mark.real
def test_overlays_that_an_earlier_snapshot_could_not_store_become_layers_too(
    store: Store, packing: Packing, tmp_path: Path, qemu_disk: tuple[Path, Path]
) -> None:
    base = store.artifact(pack(store, packing(disks=qemu_disk)))
    chain = materialise_disks(store, base)
    assert chain is not None
    low, high = tmp_path / "low", tmp_path / "high"
    low.write_bytes(build_overlay_header(str(chain.path), chain.format, chain.virtual_size_bytes))
    run("qemu-io", "-c", "write -P 21 1M 64k", low)
    high.write_bytes(build_overlay_header(str(low), "qcow2", chain.virtual_size_bytes))
    run("qemu-io", "-c", "write -P 22 2M 64k", high)
    top = materialise_disks(store, snapshot(store, base, [low, high]))
    assert top is not None
    assert top.layers == 4
    run("qemu-img", "compare", top.path, high)


def test_an_overlay_of_no_disk_is_a_bug(store: Store, packing: Packing, tmp_path: Path) -> None:
    base = store.artifact(pack(store, packing()))
    with pytest.raises(InternalError):
        snapshot(store, base, [tmp_path / "overlay"])


def test_an_export_keeps_the_subject(store: Store, packing: Packing, tmp_path: Path) -> None:
    made = snapshot(store, base_with_unknown_fields(store, packing), [])
    export_artifact(store, made.digest, tmp_path / "out.tar")
    other = Store(tmp_path / "other")
    other.create()
    assert import_artifact(other, tmp_path / "out.tar", None) == made.digest
    assert other.artifact(made.digest).oci.subject == made.oci.subject


def test_a_failed_snapshot_leaves_nothing(store: Store, packing: Packing, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    base = store.artifact(pack(store, packing(disks=(disk,))))
    blobs = store.root / "blobs" / "sha256"
    before = set(blobs.iterdir())
    overlay = tmp_path / "overlay"
    for image in (bytes(4096), build_overlay_header("x", "raw", 4096)[:200]):
        overlay.write_bytes(image)
        with pytest.raises(UnsafeDisk):
            snapshot(store, base, [overlay])
    with pytest.raises(InvalidManifest):
        snapshot(store, base, [], memory_bytes=1)
    assert set(blobs.iterdir()) == before
