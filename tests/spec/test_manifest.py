"""Decoding manifest.json: every field, strict, and with the place of the error."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.digest import digest_of
from spec.errors import InvalidManifest, OvmsError, UnsupportedManifest
from spec.manifest import Device, DiskLayer, Kernel, decode_manifest, unknown_fields

KERNEL = "sha256:" + "ab" * 32


def encoded(**changes: Any) -> bytes:
    """The smallest manifest there is, with changes."""
    smallest = {
        "schemaVersion": 1,
        "mediaType": "application/vnd.ovms.manifest.v1+json",
        "name": "tiny",
        "version": "1",
        "kernel": {"ref": KERNEL},
    }
    return json.dumps(smallest | changes).encode()


def test_every_field_of_the_rfc_example(rfc_example_bytes: bytes) -> None:
    manifest = decode_manifest(rfc_example_bytes)

    assert (manifest.schema_version, manifest.media_type) == (1, "application/vnd.ovms.manifest.v1+json")
    assert (manifest.name, manifest.version) == ("example/ubuntu-base", "24.04")
    assert manifest.kernel == Kernel(ref=digest_of(b"kernel"), args="console=ttyS0 root=/dev/vda1 rw")
    assert manifest.initrd is not None
    assert manifest.initrd.blob.digest == digest_of(b"initrd")
    assert manifest.disk_layers == [
        DiskLayer(ref=digest_of(b"base-layer"), format="qcow2", size=2 << 30),
        DiskLayer(ref=digest_of(b"diff-1"), format="qcow2", size=32 << 20),
    ]
    assert manifest.ram_snapshot is not None
    assert manifest.ram_snapshot.blob.digest == digest_of(b"ram-snap")
    assert manifest.ram_snapshot.compression == "lz4"
    assert manifest.ram_snapshot.preload_hint
    assert manifest.ram_snapshot.mlock_required
    assert manifest.devices == [Device(type="ivshmem", name="mmio0", size=64 << 20, mmio_addr="0x10000000")]
    assert (manifest.metadata.author, manifest.metadata.created) == ("ovms", "2025-09-09T00:00:00Z")
    assert (manifest.metadata.platform.arch, manifest.metadata.platform.uefi) == ("x86_64", False)
    assert manifest.runtime_hints.preferred_runtime == ["generic"]
    assert manifest.runtime_hints.cold_start_target_ms == 10
    assert unknown_fields(rfc_example_bytes) == []


def test_what_is_left_out_has_the_documented_default() -> None:
    manifest = decode_manifest(encoded())

    assert manifest.kernel.args == ""
    assert manifest.initrd is None
    assert manifest.disk_layers == []
    assert manifest.devices == []
    assert manifest.ram_snapshot is None
    assert manifest.metadata.platform.arch == "x86_64"
    assert manifest.runtime_hints.default_memory_bytes is None


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"mediaType": "application/json"}, "$.mediaType"),
        ({"name": ""}, "$.name"),
        ({"version": 24.04}, "$.version"),
        ({"kernel": {}}, "$.kernel"),
        ({"kernel": {"ref": "sha256:short"}}, "$.kernel"),
        ({"kernel": {"ref": KERNEL, "args": "x" * 4097}}, "$.kernel.args"),
        ({"initrd": {"ref": "http://example.com/initrd"}}, "$.initrd"),
        ({"diskLayers": {}}, "$.diskLayers"),
        ({"diskLayers": [{"ref": KERNEL, "format": "qcow2", "size": -1}]}, "$.diskLayers[0].size"),
        ({"diskLayers": [{"ref": KERNEL, "format": "qcow2", "size": 1}] * 65}, "$.diskLayers"),
        ({"ramSnapshot": {"ref": KERNEL, "preload_hint": 1}}, "$.ramSnapshot.preload_hint"),
        ({"devices": [{"type": "ivshmem", "name": "../x", "size": 4096}]}, "$.devices[0].name"),
        ({"devices": [{"type": "ivshmem", "name": "x\n", "size": 4096}]}, "$.devices[0].name"),
        ({"devices": [{"type": "ivshmem", "name": "x", "size": "64M"}]}, "$.devices[0].size"),
        ({"devices": [{"type": "ivshmem", "name": "x", "size": 4096, "mmio_addr": "10"}]}, "$.devices[0].mmio_addr"),
        ({"metadata": {"platform": {"uefi": "no"}}}, "$.metadata.platform.uefi"),
        ({"runtimeHints": {"coldStartTargetMs": -1}}, "$.runtimeHints.coldStartTargetMs"),
        ({"runtimeHints": {"defaultMemoryBytes": 1}}, "$.runtimeHints.defaultMemoryBytes"),
        ({"runtimeHints": {"defaultCpus": 0}}, "$.runtimeHints.defaultCpus"),
    ],
)
def test_an_error_names_the_place(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        decode_manifest(encoded(**changes))

    assert caught.value.fields["path"] == path
    assert path in caught.value.detail


@pytest.mark.parametrize("version", [0, 2, -1, 1 << 40])
def test_another_schema_version_is_refused_whatever_its_shape(version: int) -> None:
    with pytest.raises(UnsupportedManifest, match=f"schemaVersion {version} "):
        decode_manifest(json.dumps({"schemaVersion": version, "kernel": ["another", "shape"]}).encode())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b'{"schemaVersion": 1', id="cut off later"),
        pytest.param(encoded() + b"x", id="trailing bytes"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(encoded(name="n").replace(b'"n"', b'"\xff"'), id="a string that is not UTF-8"),
        pytest.param(encoded(x=0).replace(b": 0}", b": " + b"[" * 100_000 + b"]" * 100_000 + b"}"), id="deep"),
        pytest.param(encoded(x="y" * (4 << 20)), id="more than 4 MiB"),
    ],
)
def test_what_is_no_manifest_at_all(data: bytes) -> None:
    with pytest.raises(InvalidManifest):
        decode_manifest(data)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_manifest_or_one_of_our_errors(data: bytes) -> None:
    with pytest.raises(OvmsError):
        decode_manifest(data)


def test_unknown_fields_are_kept_and_listed(rfc_example: dict[str, Any]) -> None:
    rfc_example["x-build"] = {"host": "a"}
    rfc_example["kernel"]["cmdlineFile"] = "b"
    rfc_example["diskLayers"][1]["label"] = "c"
    rfc_example["metadata"]["platform"]["cpu"] = "d"
    data = json.dumps(rfc_example, indent=3).encode()

    assert decode_manifest(data).name == "example/ubuntu-base"
    assert unknown_fields(data) == [
        "$.diskLayers[1].label",
        "$.kernel.cmdlineFile",
        "$.metadata.platform.cpu",
        "$.x-build",
    ]


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).map("x-".__add__),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists, max_leaves=8),
        max_size=5,
    )
)
def test_any_unknown_field_is_listed_and_changes_nothing_else(extra: dict[str, Any]) -> None:
    data = encoded(**extra)

    assert decode_manifest(data) == decode_manifest(encoded())
    assert unknown_fields(data) == sorted(f"$.{name}" for name in extra)


def test_a_manifest_cannot_be_changed_once_decoded() -> None:
    with pytest.raises(AttributeError):
        decode_manifest(encoded()).name = "other"  # type: ignore[misc]


def test_encoding_what_was_decoded_gives_the_same_manifest(rfc_example_bytes: bytes) -> None:
    manifest = decode_manifest(rfc_example_bytes)

    assert decode_manifest(msgspec.json.encode(manifest)) == manifest
