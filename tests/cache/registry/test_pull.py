"""An artifact is listed when all of it is here, and every way that it can be wrong leaves the store as it was."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cache.artifact import Artifact
from cache.pack import pack
from cache.registry.client import Repository
from cache.registry.download import Downloads
from cache.registry.index_choice import HostPlatform
from cache.registry.progress import BlobProgress
from cache.registry.pull import Pulled, PullOptions, pull
from cache.registry.session import Session
from cache.store import Store
from spec import media_types
from spec.digest import Digest, digest_of
from spec.errors import (
    ArtifactNotFound,
    BlobNotFound,
    Denied,
    DigestMismatch,
    InvalidManifest,
    NoSpace,
    RegistryGarbage,
    SizeMismatch,
    UnsupportedManifest,
)
from spec.oci import MAX_MANIFEST_BYTES, Descriptor, ImageIndex, Platform, encode
from spec.reference import parse_reference
from tests.cache.conftest import Packing
from tests.cache.registry.conftest import FAST, until
from tests.cache.registry.small_registry import SmallRegistry

HERE = HostPlatform(("cloud-hypervisor", "qemu"), cpu_class=2)


async def here() -> HostPlatform:
    return HERE


OPTIONS = PullOptions(platform=here, downloads=Downloads(retry=FAST))


@pytest.fixture
def made(tmp_path: Path, packing: Packing, qemu_disk: tuple[Path, Path]) -> Iterator[Callable[..., Artifact]]:
    """Pack an artifact somewhere else."""
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.create()
    yield lambda **fields: elsewhere.artifact(pack(elsewhere, packing(disks=qemu_disk, **fields)))
    elsewhere.close()


@pytest.fixture
def artifact(made: Callable[..., Artifact], tmp_path: Path, registry: SmallRegistry) -> Artifact:
    """In the registry as ``app:1``."""
    artifact = made()
    serve(registry, artifact, tmp_path / "elsewhere", "1")
    return artifact


def serve(registry: SmallRegistry, artifact: Artifact, root: Path, tag: str) -> None:
    registry.add_manifest(artifact.oci_bytes, tag)
    for blob in artifact.blobs:
        registry.add_blob((root / "blobs" / "sha256" / blob.digest[7:]).read_bytes())


Puller = Callable[..., Any]


@pytest.fixture
def puller(session: Session, registry: SmallRegistry, store: Store) -> Puller:
    async def run(text: str = "app:1", **options: Any) -> Pulled:
        reference = parse_reference(f"{registry.host}/{text}")
        return await pull(store, Repository(session, reference), reference, replace(OPTIONS, **options))

    return run


async def is_empty(store: Store) -> bool:
    left = [*(store.root / "blobs/sha256").iterdir(), *store.partial_dir.iterdir()]
    return not await names(store) and not left


async def names(store: Store) -> list[str | None]:
    return [each.name for each in await asyncio.to_thread(store.list)]


async def resolved(store: Store, text: str) -> Digest:
    return await asyncio.to_thread(store.resolve, parse_reference(text))


async def test_all_of_it_arrives_and_is_named(
    puller: Puller, store: Store, registry: SmallRegistry, artifact: Artifact
) -> None:
    begun: list[Artifact] = []
    pulled = await puller(begin=begun.append)
    assert (pulled.digest, begun[0].digest, pulled.index) == (artifact.digest, artifact.digest, None)
    assert pulled.network_bytes == sum(each.size for each in artifact.blobs if each.size > 2) - len(
        artifact.manifest_bytes
    )
    assert await resolved(store, f"{registry.host}/app:1") == artifact.digest
    for blob in artifact.blobs:
        await asyncio.to_thread(store.verify_blob, blob)
    assert len(registry.seen("/manifests/")) == 1, "the tag is resolved once"
    assert not any(store.partial_dir.iterdir())

    before = len(registry.seen("/blobs/"))
    again = await puller()
    assert (again.network_bytes, again.there_bytes) == (0, pulled.network_bytes + len(artifact.manifest_bytes))
    assert len(registry.seen("/blobs/")) == before
    assert not await asyncio.to_thread(store.remove_unreferenced), "what was pulled stays, nothing else is there"


async def test_by_digest_it_has_no_name(puller: Puller, store: Store, artifact: Artifact) -> None:
    assert (await puller(f"app@{artifact.digest}")).digest == artifact.digest
    assert await names(store) == [None]


async def test_a_tag_that_moved_moves_here_too(
    puller: Puller, store: Store, registry: SmallRegistry, artifact: Artifact, made: Any, tmp_path: Path
) -> None:
    await puller()
    other = await asyncio.to_thread(lambda: made(args="other"))
    serve(registry, other, tmp_path / "elsewhere", "1")
    pulled = await puller()
    assert pulled.digest == other.digest != artifact.digest
    assert pulled.network_bytes == 0, "they differ in their documents only"
    assert await resolved(store, f"{registry.host}/app:1") == other.digest


async def test_only_so_many_at_once(puller: Puller, registry: SmallRegistry, artifact: Artifact) -> None:
    registry.chunk_wait_s = 0.02
    states: dict[str, list[BlobProgress]] = {}
    report = Downloads(retry=FAST, report=lambda each: states.setdefault(each.blob.digest, []).append(each))
    await puller(downloads=report)
    assert {each[-1].state for each in states.values()} == {"done", "there"}
    assert registry.most_at_once <= 4


async def test_what_is_not_there(puller: Puller, store: Store, registry: SmallRegistry, artifact: Artifact) -> None:
    with pytest.raises(ArtifactNotFound):
        await puller("app:2")
    del registry.blobs[artifact.kernel.digest]
    with pytest.raises(BlobNotFound):
        await puller()
    assert not await names(store)


async def test_what_was_refused_is_not_fetched(
    puller: Puller, store: Store, registry: SmallRegistry, artifact: Artifact
) -> None:
    async def approve(seen: Artifact, repository: Repository) -> None:
        assert (seen.digest, repository.name) == (artifact.digest, "app")
        raise Denied("not signed")

    with pytest.raises(Denied):
        await puller(approve=approve)
    assert await is_empty(store)
    assert len(registry.seen("/blobs/")) == 1, "its manifest.json"


async def test_another_kernel_under_the_same_digest(
    puller: Puller, store: Store, registry: SmallRegistry, artifact: Artifact
) -> None:
    registry.blobs[artifact.kernel.digest] = bytes(artifact.kernel.size)
    with pytest.raises(DigestMismatch):
        await puller()
    assert not await names(store)
    assert not store.has_blob(artifact.kernel.content_digest)
    await asyncio.to_thread(store.remove_unreferenced)
    assert not any((store.root / "blobs/sha256").iterdir())


def changed(artifact: Artifact, registry: SmallRegistry, **fields: Any) -> str:
    """The artifact with another OCI manifest, as ``app:bad``."""
    document = {**msgspec.json.decode(artifact.oci_bytes), **fields}
    return registry.add_manifest(msgspec.json.encode(document), "bad")


@pytest.mark.parametrize("what", ["size", "layers", "type", "deep", "huge", "missing ref", "manifest.json"])
async def test_manifests_that_lie_or_are_too_much(
    puller: Puller, store: Store, registry: SmallRegistry, artifact: Artifact, what: str
) -> None:
    layers = msgspec.json.decode(artifact.oci_bytes)["layers"]
    expected: type[Exception] = InvalidManifest
    if what == "size":
        changed(artifact, registry, layers=[*layers[:-1], layers[-1] | {"size": 1 << 50}])
        expected = SizeMismatch
    elif what == "layers":
        changed(artifact, registry, layers=layers + [layers[-1]] * 10_000)
    elif what == "type":
        changed(artifact, registry, artifactType="application/vnd.other")
        expected = UnsupportedManifest
    elif what == "deep":
        registry.add_manifest(b'{"layers":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "bad")
    elif what == "huge":
        registry.add_manifest(artifact.oci_bytes + b" " * MAX_MANIFEST_BYTES, "bad")
        expected = RegistryGarbage
    elif what == "missing ref":
        changed(artifact, registry, layers=layers[:1])
        expected = BlobNotFound
    else:
        changed(artifact, registry, layers=[layers[0] | {"size": 1 << 40}, *layers[1:]])
        expected = SizeMismatch
    with pytest.raises(expected):
        await puller("app:bad")
    assert not await names(store)
    assert not (store.partial_dir / layers[-1]["digest"][7:]).exists()


async def test_cancelled_it_leaves_what_can_be_gone_on_with(
    puller: Puller, store: Store, registry: SmallRegistry, artifact: Artifact
) -> None:
    big = max(artifact.blobs, key=lambda each: each.size)
    registry.chunk_wait_s = 0.05
    task = asyncio.create_task(puller())
    await until(lambda: len(registry.seen("/blobs/")) > 4 and any(store.partial_dir.iterdir()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await names(store)
    assert not store.has_blob(artifact.digest)
    registry.chunk_wait_s = 0
    assert (await puller()).digest == artifact.digest
    assert (await asyncio.to_thread(store.verify_blob, big)).exists()


# --- indexes ----------------------------------------------------------------------------------------------------------


def entry(digest: str, *, runtime: str = "", cpu: str = "", **fields: Any) -> Descriptor:
    annotations = {media_types.ANNOTATION_RUNTIME: runtime, media_types.ANNOTATION_CPU_CLASS: cpu}
    given: dict[str, Any] = {"media_type": media_types.OCI_MANIFEST, "size": 1000} | fields
    return Descriptor(digest=digest, annotations={key: value for key, value in annotations.items() if value}, **given)


def add_index(registry: SmallRegistry, *entries: Descriptor) -> str:
    return registry.add_manifest(encode(ImageIndex(2, list(entries))), "index")


OTHER = digest_of(b"other")


@pytest.mark.parametrize(
    "others",
    [
        [],
        [entry(OTHER, platform=Platform("arm64", "linux")), entry(OTHER, platform=Platform("amd64", "windows"))],
        [entry(OTHER, runtime="firecracker"), entry(OTHER, cpu="x86-64-v4"), entry(OTHER, cpu="z80")],
        [entry(OTHER, runtime="qemu"), entry(OTHER)],
        [entry(OTHER, runtime="cloud-hypervisor", cpu="x86-64-v2")],
        [entry(OTHER, media_type=media_types.OCI_INDEX), entry(OTHER, artifact_type="application/vnd.other")],
    ],
)
async def test_an_index_is_resolved_to_what_suits_this_host(
    puller: Puller, store: Store, registry: SmallRegistry, artifact: Artifact, others: list[Descriptor]
) -> None:
    wanted = entry(artifact.digest, runtime="cloud-hypervisor", cpu="x86-64-v3", platform=Platform("amd64", "linux"))
    index = add_index(registry, *others, wanted, *others)
    pulled = await puller("app:index")
    assert (pulled.digest, pulled.index) == (artifact.digest, index)
    assert await resolved(store, f"{registry.host}/app:index") == artifact.digest


async def test_an_index_without_anything_for_us_says_what_it_has(
    puller: Puller, store: Store, registry: SmallRegistry, artifact: Artifact
) -> None:
    add_index(registry, entry(OTHER, runtime="firecracker", cpu="x86-64-v4", platform=Platform("amd64", "linux")))
    with pytest.raises(UnsupportedManifest) as caught:
        await puller("app:index")
    for word in ("firecracker", "x86-64-v4", "linux/amd64", "qemu", "x86-64-v3", OTHER[:19]):
        assert word in caught.value.detail
    assert await is_empty(store)


async def test_an_index_that_lies_about_an_entry(puller: Puller, registry: SmallRegistry, artifact: Artifact) -> None:
    registry.manifests[OTHER] = artifact.oci_bytes
    add_index(registry, entry(OTHER))
    with pytest.raises(DigestMismatch):
        await puller("app:index")
    add_index(registry, entry(artifact.digest, size=1 << 40))
    with pytest.raises(InvalidManifest):
        await puller("app:index")
    add_index(registry, *[entry(artifact.digest)] * 2000)
    with pytest.raises(InvalidManifest):
        await puller("app:index")
    nested = Digest(add_index(registry, entry(artifact.digest)))
    add_index(registry, entry(nested))  # an index that is listed as a manifest is not followed either
    with pytest.raises(InvalidManifest):
        await puller("app:index")


# --- the disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_store(tmp_path: Path) -> Iterator[Store]:
    """On a disk that has room for documents, but for no layer of 3 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", mount], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    store = Store(mount / "store")
    store.create()
    yield store
    store.close()
    subprocess.run(["umount", "--lazy", mount], check=True)


async def test_a_full_disk_is_given_back(
    session: Session, registry: SmallRegistry, full_store: Store, artifact: Artifact
) -> None:
    kernel = bytes(range(256)) * 12_000
    registry.add_blob(kernel)
    layers = msgspec.json.decode(artifact.oci_bytes)["layers"]
    big = {"mediaType": "x/y", "digest": digest_of(kernel), "size": len(kernel)}
    changed(artifact, registry, layers=[*layers, big])
    reference = parse_reference(f"{registry.host}/app:bad")
    with pytest.raises(NoSpace):
        await pull(full_store, Repository(session, reference), reference, OPTIONS)
    assert await is_empty(full_store)
    assert await asyncio.to_thread(full_store.list) == []
