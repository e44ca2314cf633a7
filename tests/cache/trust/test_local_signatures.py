"""Signatures beside their artifact in the store: found, joined, collected with it, and visible to other tools."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cache.pack import pack
from cache.prune import prune
from cache.store import Store
from cache.trust.keys import PrivateKey
from cache.trust.local_signatures import keep_signatures, local_signatures
from cache.trust.signature_manifest import SignatureManifest, claims, sign_v2, sign_v3, signature_tag
from spec.digest import Digest, hex_of
from spec.errors import ArtifactNotFound, InvalidSignature
from spec.oci import ImageManifest, encode
from spec.reference import DigestSource
from tests.cache.conftest import Packing

KEY = PrivateKey.generate()
OTHER = PrivateKey.generate()


@pytest.fixture
def digest(store: Store, packing: Packing) -> Digest:
    return pack(store, packing("demo:base"))


def valid(store: Store, digest: Digest, key: PrivateKey = KEY) -> list[str]:
    """The formats of the signatures by a key."""
    found = [claim for each in local_signatures(store, digest) for claim in claims(each, digest)]
    return [
        claim.format
        for claim in found
        if not isinstance(claim, InvalidSignature) and key.public.verifies(claim.signature, claim.message)
    ]


def sign(store: Store, digest: Digest, key: PrivateKey = KEY) -> None:
    keep_signatures(store, digest, "demo", sign_v2(digest, "demo", key))
    keep_signatures(store, digest, "demo", sign_v3(store.artifact(digest).descriptor, key))


def test_both_formats_are_kept_and_found(store: Store, digest: Digest) -> None:
    assert local_signatures(store, digest) == []
    sign(store, digest)
    assert valid(store, digest) == ["v2", "v3"]
    assert valid(store, digest, OTHER) == []
    sign(store, digest, OTHER)
    assert sorted(valid(store, digest, OTHER)) == ["v2", "v3"]
    assert sorted(valid(store, digest)) == ["v2", "v3"]


def test_what_is_there_is_not_kept_again(store: Store, digest: Digest) -> None:
    v2, v3 = sign_v2(digest, "demo", KEY), sign_v3(store.artifact(digest).descriptor, KEY)
    assert [keep_signatures(store, digest, "demo", each) for each in (v2, v3, v2, v3)] == [True, True, False, False]
    assert len(local_signatures(store, digest)) == 2


def test_signatures_are_no_artifacts(store: Store, digest: Digest) -> None:
    sign(store, digest)
    assert [each.digest for each in store.list()] == [digest]
    (listed, *_) = store.referrers(digest)
    assert listed.name == f"demo:{signature_tag(digest)}"
    with pytest.raises(ArtifactNotFound):
        store.resolve(DigestSource(hex_of(listed.digest)))


def test_the_signatures_of_others_stay_theirs(store: Store, packing: Packing, digest: Digest) -> None:
    sign(store, digest)
    second = pack(store, packing("demo:second", args="quiet"))
    assert local_signatures(store, second) == []
    sign(store, second)
    assert len(local_signatures(store, digest)) == 2


def test_they_are_collected_with_their_artifact_and_not_before(store: Store, digest: Digest) -> None:
    sign(store, digest)
    sign(store, digest, OTHER)  # takes the place of the manifest at the tag
    store.remove_unreferenced()
    assert sorted(valid(store, digest)) == ["v2", "v3"]
    prune(store, everything=True)
    assert sorted(valid(store, digest)) == ["v2", "v3"]
    assert len(store.referrers(digest)) == 3
    store.untag("demo:base")
    prune(store, everything=True)
    assert store.referrers(digest) == []
    assert not [path for path in (store.root / "blobs" / "sha256").iterdir() if b"sigstore" in path.read_bytes()]


def test_damaged_signatures_are_as_good_as_none(store: Store, digest: Digest) -> None:
    sign(store, digest)
    for each in local_signatures(store, digest):
        blob = next(blob for blob in each.blobs if blob != each.digest and len(each.blobs[blob]) > 200)
        path = store.blob_path(blob)
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b" ")
    assert valid(store, digest) == []
    sign(store, digest)
    assert sorted(valid(store, digest)) == ["v2", "v3"]


def test_a_manifest_without_signatures_is_not_kept(store: Store, digest: Digest) -> None:
    oci = store.artifact(digest).oci
    with pytest.raises(InvalidSignature, match="holds no signatures"):
        keep_signatures(store, digest, "demo", SignatureManifest(encode(oci), {}))
    empty = ImageManifest(2, oci.media_type, oci.config, [])
    with pytest.raises(InvalidSignature, match="holds no signatures"):
        keep_signatures(store, digest, "demo", SignatureManifest(encode(empty), {}))


def test_signing_side_by_side_loses_nothing(store: Store, digest: Digest) -> None:
    keys = [PrivateKey.generate() for _ in range(6)]
    stores = [Store(store.root) for _ in keys]
    with ThreadPoolExecutor(len(keys)) as pool:
        list(pool.map(lambda each: sign(each[0], digest, each[1]), zip(stores, keys, strict=True)))
    for each in stores:
        each.close()
    assert all(sorted(valid(store, digest, key)) == ["v2", "v3"] for key in keys)
    assert len(store.referrers(digest)) == 1 + len(keys)


@pytest.mark.real
def test_skopeo_copies_the_v2_signatures(store: Store, digest: Digest, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    sign(store, digest)
    name = f"demo:sha256-{hex_of(digest)}.sig"
    source, target = f"oci:{store.root}:{name}", f"oci:{tmp_path / 'copy'}:{name}"
    command = ["skopeo", "--insecure-policy", "copy", "-q", source, target]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    (copied,) = json.loads((tmp_path / "copy" / "index.json").read_text())["manifests"]
    assert copied["digest"] in {each.digest for each in store.referrers(digest)}
