"""Refs of a manifest.json that lead elsewhere: what they may be, what they become, and where they must not lead."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cache.artifact import Artifact
from cache.pack import pack
from cache.prune import prune
from cache.ramsnap import EncodedRamsnap
from cache.registry.access import Access, open_registries
from cache.registry.download import Downloads
from cache.registry.index_choice import HostPlatform
from cache.registry.pull import Pulled, PullOptions, pull
from cache.snapshot_artifact import store_snapshot
from cache.store import Store
from spec import media_types
from spec.digest import digest_of
from spec.errors import (
    BlobNotFound,
    DigestMismatch,
    InvalidManifest,
    InvalidReference,
    OvmsError,
    RegistryGarbage,
    RegistryUnreachable,
    UnsupportedManifest,
)
from spec.oci import EMPTY_DESCRIPTOR, Descriptor, ImageManifest, encode
from spec.reference import parse_reference
from tests.cache.conftest import Packing
from tests.cache.registry.conftest import FAST
from tests.cache.registry.small_registry import SmallRegistry

KERNEL = bytes(0x202) + b"HdrS" + bytes(range(256)) * 500

USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
"""What Python 3.13 demands of an authority."""


@dataclass
class Web:
    """A web server with TLS on loopback, and the authority that vouches for it."""

    ca_file: Path
    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    replies: dict[str, web.Response] = field(default_factory=dict)

    def url(self, name: str) -> str:
        return f"https://127.0.0.1:{self.port}/{name}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        name = request.path.lstrip("/")
        if name in self.replies:
            return self.replies[name]
        if name not in self.files:
            return web.Response(status=404)
        return web.Response(body=self.files[name])


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(USAGE, critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    return cert_file, key_file


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Web]:
    cert_file, key_file = await asyncio.to_thread(certificate, tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    await asyncio.to_thread(context.load_cert_chain, cert_file, key_file)
    served = Web(cert_file)
    running = TestServer(app_of(served), host="127.0.0.1", scheme="https")
    await running.start_server(ssl=context)
    served.port = running.port or 0
    yield served
    await running.close()


def app_of(served: Web) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", served.handle)
    return app


def put(registry: SmallRegistry, kernel: str, **more: Any) -> str:
    """An artifact ``app:1`` whose OCI manifest lists manifest.json alone; returns its digest."""
    document = {
        "schemaVersion": 1,
        "mediaType": media_types.MANIFEST,
        "name": "app",
        "version": "1",
        "kernel": {"ref": kernel},
        **more,
    }
    manifest = msgspec.json.encode(document)
    layer = Descriptor(media_types.MANIFEST, digest_of(manifest), len(manifest))
    oci = ImageManifest(2, media_types.OCI_MANIFEST, EMPTY_DESCRIPTOR, [layer], artifact_type=media_types.MANIFEST)
    registry.add_blob(manifest)
    return registry.add_manifest(encode(oci), "1")


@asynccontextmanager
async def pulling(
    registry: SmallRegistry, store: Store, ca_file: Path | None = None, **options: Any
) -> AsyncIterator[Callable[[], Any]]:
    async def platform() -> HostPlatform:
        return HostPlatform(("qemu",), 1)

    async with open_registries(Access(ca_file=ca_file, retry=FAST)) as registries:
        reference = parse_reference(f"{registry.host}/app:1")
        given = PullOptions(platform=platform, downloads=Downloads(retry=FAST), registries=registries, **options)

        async def run() -> Pulled:
            return await pull(store, registries.repository(reference), reference, given)

        yield run


async def artifact_in(store: Store, registry: SmallRegistry) -> Artifact:
    def look() -> Artifact:
        return store.artifact(store.resolve(parse_reference(f"{registry.host}/app:1")))

    return await asyncio.to_thread(look)


async def test_a_file_of_a_web_server(registry: SmallRegistry, store: Store, server: Web) -> None:
    server.files["vmlinuz"] = KERNEL
    ref = f"{server.url('vmlinuz')}#{digest_of(KERNEL)}"
    digest = put(registry, ref)
    async with pulling(registry, store, server.ca_file) as run:
        pulled = await run()
        assert (pulled.digest, pulled.network_bytes) == (digest, len(KERNEL))
        artifact = await artifact_in(store, registry)
        assert artifact.manifest.kernel.ref == ref, "the manifest stays as it is"
        assert (artifact.kernel.digest, artifact.kernel.size) == (digest_of(KERNEL), len(KERNEL))
        path = await asyncio.to_thread(store.verify_blob, artifact.kernel)
        assert path.read_bytes() == KERNEL

        await asyncio.to_thread(prune, store)
        assert store.has_blob(artifact.kernel.content_digest), "it is needed"
        assert (await run()).network_bytes == 0
        await asyncio.to_thread(store.unlist, artifact.digest)
        await asyncio.to_thread(prune, store)
        assert not store.has_blob(artifact.kernel.content_digest), "and goes with the artifact"


async def test_the_listed_layer_is_taken_before_the_network(registry: SmallRegistry, store: Store) -> None:
    ref = f"https://nowhere.invalid/vmlinuz#{digest_of(KERNEL)}"
    put(registry, ref)
    document = msgspec.json.decode(registry.manifests["1"])
    document["layers"].append({"mediaType": media_types.KERNEL, "digest": digest_of(KERNEL), "size": len(KERNEL)})
    registry.add_manifest(msgspec.json.encode(document), "1")
    registry.add_blob(KERNEL)
    async with pulling(registry, store) as run:
        await run()
    assert (await artifact_in(store, registry)).kernel.digest == digest_of(KERNEL)


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("https://127.0.0.1:PORT/vmlinuz", InvalidReference),
        ("http://127.0.0.1:PORT/vmlinuz#" + digest_of(KERNEL), InvalidManifest),
        ("https://127.0.0.1:PORT/vmlinuz#" + digest_of(b"other"), DigestMismatch),
        ("https://127.0.0.1:PORT/vmlinuz#sha256:123", InvalidManifest),
        ("https://127.0.0.1:PORT/missing#" + digest_of(KERNEL), BlobNotFound),
        ("https://127.0.0.1:PORT/down#" + digest_of(KERNEL), RegistryGarbage),
        ("https://127.0.0.1:PORT/inward#" + digest_of(KERNEL), RegistryGarbage),
        ("https://169.254.169.254/latest/meta-data#" + digest_of(KERNEL), RegistryGarbage),
        ("https://10.1.2.3/vmlinuz#" + digest_of(KERNEL), RegistryGarbage),
        ("10.1.2.3:5000/app:1", RegistryGarbage),
        ("localhost:5000/app:1", RegistryGarbage),
    ],
)
async def test_what_is_refused(
    registry: SmallRegistry, store: Store, server: Web, ref: str, expected: type[OvmsError]
) -> None:
    server.files["vmlinuz"] = KERNEL
    server.replies["down"] = web.Response(status=302, headers={"Location": "http://127.0.0.1:1/vmlinuz"})
    server.replies["inward"] = web.Response(status=302, headers={"Location": "https://192.168.0.1/vmlinuz"})
    put(registry, ref.replace("PORT", str(server.port)))
    async with pulling(registry, store, server.ca_file) as run:
        with pytest.raises(expected):
            await run()
    assert not await asyncio.to_thread(store.list)
    assert not any((store.root / "blobs/sha256").iterdir())


async def test_a_server_that_nobody_vouches_for(registry: SmallRegistry, store: Store, server: Web) -> None:
    server.files["vmlinuz"] = KERNEL
    put(registry, f"{server.url('vmlinuz')}#{digest_of(KERNEL)}")
    async with pulling(registry, store) as run:
        with pytest.raises(RegistryUnreachable):
            await run()


@pytest.fixture
async def other(registry: SmallRegistry, tmp_path: Path, packing: Packing) -> Artifact:
    """Another artifact of the registry, ``base:2``."""

    def make() -> Artifact:
        elsewhere = Store(tmp_path / "elsewhere")
        elsewhere.create()
        artifact = elsewhere.artifact(pack(elsewhere, packing()))
        registry.add_manifest(artifact.oci_bytes, "2")
        for blob in artifact.blobs:
            registry.add_blob(elsewhere.blob_path(blob.content_digest).read_bytes())
        elsewhere.close()
        return artifact

    return await asyncio.to_thread(make)


@pytest.mark.parametrize("form", ["base:2", "base:2/kernel", "base@DIGEST", "base@DIGEST/kernel", "base@KERNEL"])
async def test_a_part_of_another_artifact(registry: SmallRegistry, store: Store, other: Artifact, form: str) -> None:
    form = form.replace("DIGEST", other.digest).replace("KERNEL", other.kernel.digest)
    put(registry, f"{registry.host}/{form}", initrd={"ref": f"{registry.host}/base:2"})
    async with pulling(registry, store) as run:
        await run()
    artifact = await artifact_in(store, registry)
    assert other.initrd is not None
    assert artifact.initrd is not None
    assert (artifact.kernel.digest, artifact.initrd.digest) == (other.kernel.digest, other.initrd.digest)
    unpinned = {f"{registry.host}/{each}" for each in ("base:2", form) if "sha256:" not in each}
    assert set(artifact.unpinned) == unpinned
    assert {each.digest for each in artifact.external_blobs} == {other.kernel.digest, other.initrd.digest}


async def test_a_tag_that_moves_is_resolved_anew_by_the_next_pull(
    registry: SmallRegistry, store: Store, other: Artifact
) -> None:
    put(registry, f"{registry.host}/base:2")
    base = registry.manifests["2"]
    async with pulling(registry, store) as run:
        for content in (base, base.replace(other.kernel.digest.encode(), digest_of(KERNEL).encode()), base):
            document = msgspec.json.decode(content)
            document["layers"][1] |= {"size": len(KERNEL) if content != base else other.kernel.size}
            manifest = registry.blobs[document["layers"][0]["digest"]].replace(
                other.kernel.digest.encode(), document["layers"][1]["digest"].encode()
            )
            document["layers"][0]["digest"] = registry.add_blob(manifest)
            registry.add_blob(KERNEL)
            registry.add_manifest(msgspec.json.encode(document), "2")
            await run()
            expected = document["layers"][1]["digest"]
            assert (await artifact_in(store, registry)).kernel.digest == expected


async def test_what_leads_elsewhere_from_there_is_followed_no_further(registry: SmallRegistry, store: Store) -> None:
    put(registry, f"{registry.host}/app:1")
    async with pulling(registry, store) as run:
        with pytest.raises(BlobNotFound):
            await run()


async def test_disks_and_ram_are_not_taken_apart(registry: SmallRegistry, store: Store, other: Artifact) -> None:
    put(registry, f"{registry.host}/base:2", ramSnapshot={"ref": f"{registry.host}/base:2"})
    async with pulling(registry, store) as run:
        with pytest.raises(UnsupportedManifest):
            await run()


async def test_a_snapshot_of_it_has_its_kernel(registry: SmallRegistry, store: Store, other: Artifact) -> None:
    put(registry, f"{registry.host}/base:2", initrd={"ref": f"{registry.host}/base:2"})
    async with pulling(registry, store) as run:
        await run()
    base = await artifact_in(store, registry)

    def snapshot() -> Artifact:
        with store.writer() as writer:
            writer.write(b"ram")
            digest, size = writer.commit()
        ram = EncodedRamsnap(digest=digest, size_bytes=size, header_digest=digest, ram_bytes=3, stored_bytes=3)
        made = store_snapshot(
            store,
            base,
            ramsnap=ram,
            overlays=[],
            reference=parse_reference("app:warm"),
            memory_bytes=32 << 20,
            cpus=1,
            kernel_args="",
            mlock_required=False,
        )
        return store.artifact(made)

    taken = await asyncio.to_thread(snapshot)
    assert taken.manifest.kernel.ref == base.kernel.digest
    assert not taken.resolved
    assert {base.kernel.digest, base.external_blobs[1].digest} <= {each.digest for each in taken.oci.layers}
