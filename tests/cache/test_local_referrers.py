"""What the local store knows to refer to an artifact, and what it is called."""

from __future__ import annotations

import json

import pytest

from cache.local_referrers import local_referrers
from cache.pack import pack
from cache.referrer_kinds import kind_of
from cache.store import Store
from cache.trust.keys import PrivateKey
from cache.trust.local_signatures import keep_signatures
from cache.trust.signature_manifest import sign_v2, sign_v3
from spec import media_types
from spec.digest import digest_of
from spec.oci import EMPTY_DESCRIPTOR, Descriptor, ImageManifest, encode
from tests.cache.conftest import Packing
from tests.cache.test_snapshot_artifact import snapshot


def test_snapshots_signatures_and_what_other_tools_listed(store: Store, packing: Packing) -> None:
    base = store.artifact(pack(store, packing()))
    other = store.artifact(pack(store, packing("demo:other", args="quiet")))
    assert local_referrers(store, base.digest) == []

    made = snapshot(store, base, [])
    key = PrivateKey.generate()
    for artifact in (base, other):
        keep_signatures(store, artifact.digest, "demo", sign_v2(artifact.digest, "demo", key))
        keep_signatures(store, artifact.digest, "demo", sign_v3(artifact.descriptor, key))
    layer = Descriptor("application/spdx+json", store.put_bytes(b"sbom"), 4)
    sbom = encode(
        ImageManifest(
            2,
            media_types.OCI_MANIFEST,
            EMPTY_DESCRIPTOR,
            [layer],
            artifact_type="application/spdx+json",
            subject=base.descriptor,
        )
    )
    _list_as_others_do(store, sbom)

    found = local_referrers(store, base.digest)
    kinds = sorted(kind_of(each.artifact_type, each.annotations) for each in found)
    assert kinds == ["sbom", "signature", "signature", "snapshot"]
    digests = {each.digest for each in found}
    assert {made.digest, digest_of(sbom)} < digests
    assert not digests & {each.digest for each in local_referrers(store, other.digest)}

    store.blob_path(digest_of(sbom)).write_bytes(b"{}")
    assert digest_of(sbom) not in {each.digest for each in local_referrers(store, base.digest)}


def _list_as_others_do(store: Store, manifest: bytes) -> None:
    index = store.root / "index.json"
    document = json.loads(index.read_text())
    entry = {"mediaType": media_types.OCI_MANIFEST, "digest": store.put_bytes(manifest), "size": len(manifest)}
    document["manifests"].append({**entry, "artifactType": "application/spdx+json"})
    index.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("artifact_type", "annotations", "kind"),
    [
        (media_types.MANIFEST, {}, "snapshot"),
        ("application/vnd.dev.cosign.simplesigning.v1+json", {}, "signature"),
        (
            media_types.SIGSTORE_BUNDLE,
            {"dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1"},
            "signature",
        ),
        (media_types.SIGSTORE_BUNDLE, {"dev.sigstore.bundle.predicateType": "https://spdx.dev/Document"}, "sbom"),
        (media_types.SIGSTORE_BUNDLE, {}, "attestation"),
        ("application/vnd.cyclonedx+json", {}, "sbom"),
        ("application/vnd.in-toto+json", {}, "attestation"),
        ("application/x-note", {}, "other"),
        ("", {}, "other"),
    ],
)
def test_what_it_is_called(artifact_type: str, annotations: dict[str, str], kind: str) -> None:
    assert kind_of(artifact_type, annotations) == kind
