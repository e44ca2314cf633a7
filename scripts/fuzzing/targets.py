"""What is fuzzed: for each reader of foreign bytes, a call with any bytes, and inputs that it takes.

A target may raise OvmsError, which is how bytes are refused; everything else is a finding.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cache.ramsnap.decoder import RamsnapDecoder
from cache.ramsnap.head import head_bytes, parse_head
from cache.ramsnap.lz4_frame import DESCRIPTOR_BYTES
from cache.registry.challenge import parse_challenges
from cache.registry.index_choice import HostPlatform, choose_entry, is_index
from cache.registry.referrers import referrer_of, tagged_signatures
from cache.tar_reader import TarReader
from cache.trust.bundle import check_bundle
from cache.trust.keys import decode_private_key, decode_public_key
from cache.trust.policy_file import read_policy
from cache.trust.signature_manifest import decode_signature_manifest
from cache.trust.simple_signing import check_simple
from ovms_supervisor.client.connection import error_of
from ovms_supervisor.instance import record
from spec import api, oci
from spec.decoding import NotDecodable, from_json
from spec.digest import Digest, digest_from_hash
from spec.errors import OvmsError
from spec.manifest import decode_manifest, unknown_fields
from spec.qcow2 import build_overlay_header, parse_header
from spec.ramsnap import DEFAULT_LIMITS, RamsnapLimits, parse_index
from spec.reference import parse_reference, parse_source
from spec.sizes import parse_size

_ROOT = Path(__file__).parents[2]
_VECTORS = _ROOT / "spec" / "vectors"
_DIGEST: Digest = digest_from_hash(hashlib.sha256(b""))
_SMALL = RamsnapLimits(max_memory_bytes=16 << 20)


@dataclass(frozen=True)
class Target:
    """One reader."""

    read: Callable[[bytes], object]
    seeds: list[bytes] = field(default_factory=list)

    def __call__(self, data: bytes) -> None:
        """Raises what is a finding."""
        with suppress(OvmsError):
            self.read(data)


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


def _manifest(data: bytes) -> None:
    decode_manifest(data)
    unknown_fields(data)


def _references(text: str) -> None:
    for parse in (parse_reference, parse_source, parse_size):
        with suppress(OvmsError):
            parse(text)


def _ramsnap_header(data: bytes) -> None:
    """The payload of a header frame, and the frame that a blob begins with."""
    with suppress(OvmsError):
        parse_index(data, header_frame_bytes=len(data))
    parse_head(data[: head_bytes(data[:DESCRIPTOR_BYTES], DEFAULT_LIMITS)], DEFAULT_LIMITS)


def _ramsnap(data: bytes) -> None:
    """The whole of a blob, in pieces; whatever it says, no more than 16 MiB of RAM are made."""
    digest = digest_from_hash(hashlib.sha256(data))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        destination = Path(directory) / "image"
        with RamsnapDecoder(destination, limits=_SMALL, threads=1) as decoder:
            for start in range(0, len(data), 1000):
                decoder.feed(data[start : start + 1000])
            decoder.finish(digest)


def _tar(data: bytes) -> None:
    for member in (reader := TarReader(io.BytesIO(data))).members():
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise AssertionError(f"{member.name!r} leaves the archive")
        for _ in reader.content():
            pass


def _tars() -> list[bytes]:
    made = []
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
            for name in ("manifest.json", "d/" + "n" * (90 if kind == tarfile.USTAR_FORMAT else 150)):
                entry = tarfile.TarInfo(name)
                entry.size = 5
                tar.addfile(entry, io.BytesIO(b"hello"))
        made.append(out.getvalue())
    return made


def _api(data: bytes) -> None:
    for kind in _REQUESTS:
        with suppress(NotDecodable):
            from_json(data, kind)
    error_of(500, "application/problem+json", data)


_REQUESTS = (
    api.StartRequest,
    api.StopRequest,
    api.InstanceRequest,
    api.SnapshotRequest,
    api.InjectRequest,
    api.PullRequest,
    api.PushRequest,
    api.PruneRequest,
    api.WarmRequest,
)


def _registry(data: bytes) -> None:
    parse_challenges([data.decode("latin-1")])
    is_index(data)
    for read in (
        lambda: oci.decode(data, oci.ImageManifest, "it"),
        lambda: choose_entry(data, _HOST, "it"),
        lambda: referrer_of(data, _DIGEST, _DIGEST),
        lambda: tagged_signatures(data),
    ):
        with suppress(OvmsError):
            read()


_HOST = HostPlatform(runtimes=("qemu",), cpu_class=1)


def _cosign(data: bytes) -> None:
    for read in (
        lambda: check_bundle(data, _DIGEST),
        lambda: check_simple(data, "AAAA", _DIGEST),
        lambda: decode_signature_manifest(data),
        lambda: decode_public_key(data),
        lambda: decode_private_key(data, lambda: b"password"),
    ):
        with suppress(OvmsError):
            read()


def _policy(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm", suffix=".toml") as file:
        file.write(data)
        file.flush()
        read_policy(Path(file.name))


_JOURNAL = (
    b'{"version":1,"instance_id":"a","boot_id":"b","request":{"manifest":"demo:base"},"name":null,"lineage":"c",'
    b'"manifest":{},"boot":"cold","runtime":{},"memory_bytes":1,"cpus":1,"devices":[],"created_at":"d","state":"running",'
    b'"pending_layers":["/a/b"],"vm":{"pid":1,"start_ticks":2,"generation":3,"machine":{}},"doing":{"what":"pause"}}'
)


_POLICY = b"""version = 1
default = [{ type = "reject" }]
[scopes]
"*.example.com" = [{ type = "accept" }]
[ramSnapshot]
default = [{ type = "accept" }]
"""


def _files(directory: Path, pattern: str) -> list[bytes]:
    return [each.read_bytes() for each in sorted(directory.glob(pattern))]


_MANIFEST = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"a/b",'
    b'"digest":"%s","size":2},"layers":[{"mediaType":"a/c","digest":"%s","size":3,"annotations":{"a":"b"}}],'
    b'"subject":{"mediaType":"a/d","digest":"%s","size":4}}'
) % ((_DIGEST.encode(),) * 3)

TARGETS: dict[str, Target] = {
    "manifest": Target(_manifest, _files(_ROOT / "tests" / "spec" / "samples", "*.json")),
    "references": Target(
        _text(_references), [b"demo:base", b"localhost:5000/a/b:c@" + _DIGEST.encode(), b"./demo.tar", b"512M"]
    ),
    "ramsnap-header": Target(_ramsnap_header, _files(_VECTORS, "*.ramsnap")),
    "ramsnap": Target(_ramsnap, _files(_VECTORS, "*.ramsnap")),
    "qcow2": Target(parse_header, [build_overlay_header("base.raw", "raw", 1 << 30)[:4096]]),
    "tar": Target(_tar, _tars()),
    "api": Target(
        _api,
        [
            b'{"manifest":"demo:base","overrides":{"name":"web","memory":"1G","cpus":2,"kernel_args":"a=b"}}',
            b'{"instance_id":"web","content":{"mmio":[{"device":"mmio0","offset":8,"data":"AAAA"}]}}',
            b'{"reference":"localhost:5000/a:b","policy":"always"}',
        ],
    ),
    "registry": Target(
        _registry, [_MANIFEST, b'{"manifests":[]}', b'Bearer realm="https://a/b",service="c",scope="repository:d:pull"']
    ),
    "journal": Target(record.decode, [b'{"version":1}', _JOURNAL]),
    "cosign": Target(
        _cosign,
        [
            b'{"critical":{"identity":{"docker-reference":"a"},"image":{"docker-manifest-digest":"%s"},'
            b'"type":"cosign container image signature"},"optional":null}' % _DIGEST.encode(),
            b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{}},'
            b'"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AA=="}]}}',
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        ],
    ),
    "policy": Target(_policy, [_POLICY]),
}
