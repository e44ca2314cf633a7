"""Other tools on our layout: skopeo and Debian's docker-registry must give back what they were given."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.pack import pack
from cache.store import Store
from spec.digest import digest_of
from spec.reference import parse_reference
from tests.cache.conftest import Packing, run
from tests.cache.docker_registry import docker_registry

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed"),
]


def copy(*args: str | Path) -> None:
    run("skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", *args)


def same_blobs(store: Store, other: Store, digest: str) -> bool:
    artifact = store.artifact(digest)  # type: ignore[arg-type]
    copied = other.artifact(artifact.digest)
    for blob in copied.blobs:
        other.verify_blob(blob)
    return copied.oci_bytes == artifact.oci_bytes


def test_skopeo_copies_a_layout_unchanged_and_into_ours(
    store: Store, packing: Packing, qemu_disk: tuple[Path, Path], tmp_path: Path
) -> None:
    digest = pack(store, packing("demo/web:base", disks=qemu_disk))
    pack(store, packing("demo/web:other", args="quiet"))
    target = tmp_path / "copy"
    copy(f"oci:{store.root}:demo/web:base", f"oci:{target}:demo/web:base")
    other = Store(target)
    other.create()
    assert other.resolve(parse_reference("demo/web:base")) == digest
    assert same_blobs(store, other, digest)

    pack(other, packing("demo/web:ours", args="ours"))
    copy(f"oci:{target}:demo/web:ours", f"oci:{store.root}:demo/web:base")
    assert store.resolve(parse_reference("demo/web:base")) != digest
    assert None in {each.name for each in store.list()}, "skopeo lists what lost its name without one, as we do"
    assert store.artifact(digest).digest == digest


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path) as address:
        yield address


def test_through_a_registry_and_back(store: Store, packing: Packing, registry: str, tmp_path: Path) -> None:
    digest = pack(store, packing("demo:base"))
    copy("--dest-tls-verify=false", f"oci:{store.root}:demo:base", f"docker://{registry}/demo:base")
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry}/demo:base"],
        check=True,
        capture_output=True,
    ).stdout
    assert digest_of(raw) == digest
    target = tmp_path / "back"
    copy("--src-tls-verify=false", f"docker://{registry}/demo:base", f"oci:{target}:demo:base")
    other = Store(target)
    other.create()
    assert other.resolve(parse_reference("demo:base")) == digest
    assert same_blobs(store, other, digest)
