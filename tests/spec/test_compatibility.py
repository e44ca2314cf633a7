"""A RAM snapshot is continued only by a machine like the one it was taken from."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from spec.compatibility import Compatibility, MemoryRegion, RestoreTarget, check_restorable
from spec.errors import IncompatibleSnapshot

RECORDED = Compatibility(
    runtime="qemu",
    version="7.2.15",
    machine_type="pc-q35-7.2",
    accelerator="kvm",
    cpu_model="host",
    cpu_vendor="GenuineIntel",
    cpu_flags=["aes", "avx2"],
    memory_bytes=1 << 28,
    cpus=1,
    regions=[MemoryRegion(name="ram", guest_address=0, image_offset=0, size_bytes=1 << 28)],
)
SAME = RestoreTarget(
    runtime="qemu",
    version="7.2.15",
    machine_type="pc-q35-7.2",
    accelerator="kvm",
    cpu_model="host",
    cpu_vendor="GenuineIntel",
    cpu_flags=["aes", "avx2", "avx512f"],
)


def test_a_machine_that_has_more_can_continue_it() -> None:
    check_restorable(RECORDED, SAME)


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("runtime", "cloud-hypervisor"),
        ("version", "7.2.16"),
        ("machine_type", "pc-q35-8.0"),
        ("accelerator", "tcg"),
        ("cpu_model", "max"),
        ("cpu_vendor", "AuthenticAMD"),
    ],
)
def test_a_difference_is_refused_with_both_sides_named(what: str, other: str) -> None:
    target = msgspec.structs.replace(SAME, **{what: other})

    with pytest.raises(IncompatibleSnapshot) as caught:
        check_restorable(RECORDED, target)

    assert repr(getattr(RECORDED, what)) in caught.value.detail
    assert repr(other) in caught.value.detail
    assert caught.value.fields == {"property": what, "snapshot": getattr(RECORDED, what), "host": other}
    assert "cold" in caught.value.remedy


@pytest.mark.parametrize(("here", "missing"), [(["aes"], ["avx2"]), ([], ["aes", "avx2"])])
def test_missing_cpu_flags_are_named(here: list[str], missing: list[str]) -> None:
    with pytest.raises(IncompatibleSnapshot) as caught:
        check_restorable(RECORDED, msgspec.structs.replace(SAME, cpu_flags=here))

    assert caught.value.fields["missing"] == missing


def test_the_record_survives_the_header_of_a_ramsnap() -> None:
    record: Any = msgspec.json.decode(msgspec.json.encode(RECORDED), type=Compatibility)

    assert record == RECORDED
