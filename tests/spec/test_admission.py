"""The limits of v0.1 (RFC §9): refused by name, not ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spec.admission import check_supported
from spec.errors import InvalidManifest, UnsupportedManifest
from spec.manifest import decode_manifest

IVSHMEM = {"type": "ivshmem", "name": "mmio0", "size": 65536}
LAYER = {"ref": "sha256:" + "ab" * 32, "format": "qcow2", "size": 1}


def check(document: dict[str, Any], **changes: Any) -> None:
    check_supported(decode_manifest(json.dumps(document | changes).encode()))


def test_the_rfc_example_is_supported(rfc_example: dict[str, Any]) -> None:
    check(rfc_example)


def test_a_raw_base_with_a_qcow2_diff_is_supported(rfc_example: dict[str, Any]) -> None:
    check(rfc_example, diskLayers=[LAYER | {"format": "raw"}, LAYER])


@pytest.mark.parametrize(
    ("changes", "path", "limit"),
    [
        ({"metadata": {"platform": {"arch": "aarch64"}}}, "$.metadata.platform.arch", "x86_64"),
        ({"metadata": {"platform": {"uefi": True}}}, "$.metadata.platform.uefi", "UEFI"),
        ({"devices": [IVSHMEM, {"type": "gpu", "name": "g"}]}, "$.devices[1].type", "no GPU passthrough"),
        ({"devices": [{"type": "vfio-pci", "name": "g"}]}, "$.devices[0].type", "no GPU passthrough"),
        ({"devices": [{"type": "tpm", "name": "t"}]}, "$.devices[0].type", "ivshmem"),
        ({"diskLayers": [LAYER | {"format": "ovfms"}]}, "$.diskLayers[0].format", "qcow2 and raw"),
        ({"ramSnapshot": {"ref": LAYER["ref"], "compression": "zstd"}}, "$.ramSnapshot.compression", "lz4"),
    ],
)
def test_a_limit_is_named(rfc_example: dict[str, Any], changes: dict[str, Any], path: str, limit: str) -> None:
    with pytest.raises(UnsupportedManifest) as caught:
        check(rfc_example, **changes)

    assert caught.value.fields["path"] == path
    assert limit in caught.value.fields["limit"]
    assert limit in caught.value.detail
    assert "v0.1" in caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"devices": [IVSHMEM, IVSHMEM]}, "$.devices[1].name"),
        ({"devices": [IVSHMEM | {"size": 65537}]}, "$.devices[0].size"),
        ({"devices": [IVSHMEM | {"size": 2048}]}, "$.devices[0].size"),
        ({"devices": [{"type": "ivshmem", "name": "mmio0"}]}, "$.devices[0].size"),
        ({"diskLayers": [LAYER, LAYER | {"format": "raw"}]}, "$.diskLayers[1].format"),
    ],
)
def test_a_contradiction_is_an_invalid_manifest(
    rfc_example: dict[str, Any], changes: dict[str, Any], path: str
) -> None:
    with pytest.raises(InvalidManifest) as caught:
        check(rfc_example, **changes)

    assert caught.value.fields["path"] == path
