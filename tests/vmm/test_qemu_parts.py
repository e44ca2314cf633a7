"""What QEMU is told: the command line, the board, the block nodes. No process."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.errors import UnsafeDisk
from spec.qcow2 import build_overlay_header
from spec.sizes import GIB, MIB
from vmm import disk_chain
from vmm.cpu import HostCpu
from vmm.driver import Disk, Machine, Ram, SharedMemory, VmmFiles
from vmm.overlays import create_overlay
from vmm.qemu.block_graph import disk_node, overlay_node
from vmm.qemu.board import devices, hardware, memory_regions
from vmm.qemu.command_line import Descriptors, command_line
from vmm.qemu.installation import Installation, kvm_limitation

TCG = Installation(binary=Path("/q"), version=(7, 2, 22), machine_type="pc-q35-7.2", accelerator="tcg")
KVM = replace(TCG, version=(10, 0, 2), accelerator="kvm")
FILES = VmmFiles(directory=Path("/run/i"), console=Path("/run/i/console"), log=Path("/run/i/log"))


def machine(*, private: bool = False, disks: int = 0, shared: int = 0) -> Machine:
    return Machine(
        cpus=2,
        ram=Ram(path=Path("/image/ram"), size_bytes=256 * MIB, private=private),
        kernel=Path("/kernel"),
        initrd=Path("/initrd"),
        kernel_args="console=ttyS0 a,b",
        disks=tuple(Disk(path=Path(f"/d{number}"), format="raw") for number in range(disks)),
        devices=tuple(
            SharedMemory(name=f"s{number}", path=Path(f"/s{number}"), size_bytes=MIB) for number in range(shared)
        ),
    )


def argv(each: Machine, installation: Installation = TCG, *, incoming: bool = False) -> list[str]:
    return command_line(installation, each, FILES, disks=[], fds=Descriptors(qmp=7, console=8), incoming=incoming)


def option(arguments: list[str], name: str) -> list[str]:
    return [value for flag, value in itertools.pairwise(arguments) if flag == name]


def ram_of(arguments: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(option(arguments, "-object")[0])
    return found


def test_a_cold_boot_has_its_ram_shared_and_a_kernel() -> None:
    arguments = argv(machine())
    assert ram_of(arguments)["share"] is True
    assert option(arguments, "-append") == ["console=ttyS0 a,b"]
    assert option(arguments, "-kernel") == ["/kernel"]
    assert option(arguments, "-initrd") == ["/initrd"]
    assert "-incoming" not in arguments
    assert "-S" in arguments


def test_a_clone_has_its_ram_private_and_no_kernel() -> None:
    arguments = argv(machine(private=True), incoming=True)
    assert ram_of(arguments) == {
        "qom-type": "memory-backend-file",
        "id": "ram",
        "size": 256 * MIB,
        "mem-path": "/image/ram",
        "share": False,
    }
    assert not {"-kernel", "-initrd", "-append"} & set(arguments)
    assert option(arguments, "-incoming") == ["defer"]


def test_a_later_qemu_opens_images_read_only() -> None:
    ram = ram_of(argv(machine(private=True), KVM, incoming=True))
    assert (ram["readonly"], ram["rom"]) == (True, "off")
    assert "readonly" not in ram_of(argv(machine(), KVM))


def test_the_host_cpu_is_shown_only_where_it_runs_the_guest() -> None:
    assert option(argv(machine()), "-cpu") == ["max"]
    assert option(argv(machine(), KVM), "-cpu") == ["host"]
    assert option(argv(machine(), KVM), "-accel") == ["kvm"]
    assert (TCG.target().cpu_vendor, TCG.target().cpu_flags) == ("", [])


def test_original_and_clone_differ_in_nothing_that_the_guest_sees() -> None:
    cold, clone = machine(disks=3, shared=2), machine(disks=3, shared=2, private=True)
    assert devices(cold) == devices(clone)
    assert hardware(cold) == hardware(clone)
    assert option(argv(cold), "-device") == option(argv(clone, incoming=True), "-device")
    assert "/" not in json.dumps(hardware(cold))


@given(st.integers(0, 32), st.integers(0, 32))
def test_every_device_has_an_address_of_its_own_whatever_there_is_of_the_others(disks: int, shared: int) -> None:
    found = devices(machine(disks=disks, shared=shared))  # all are PCI devices but one
    addresses = [each["addr"] for each in found if "addr" in each]
    assert len(set(addresses)) == len(addresses)
    assert all(0 < int(address.partition(".")[0], 16) < 0x1F for address in addresses)
    alone = devices(machine(disks=disks))
    assert found[: len(alone)] == alone


@given(st.integers(1, 64 * GIB // 4096).map(lambda pages: pages * 4096))
def test_regions_cover_the_ram_file_once(size_bytes: int) -> None:
    regions = memory_regions(size_bytes)
    assert [each.image_offset for each in regions] == [0, 2 * GIB][: len(regions)]
    assert sum(each.size_bytes for each in regions) == size_bytes
    assert regions[0].size_bytes <= 0xB000_0000
    assert all(each.guest_address == 4 * GIB for each in regions[1:])


def test_every_layer_is_named_with_its_format(tmp_path: Path) -> None:
    base, middle, top = tmp_path / "base", tmp_path / "middle", tmp_path / "top"
    base.write_bytes(bytes(MIB))
    create_overlay(middle, base, "raw", MIB)
    top.write_bytes(build_overlay_header("middle", "qcow2", MIB))  # relative to its own directory
    node = disk_node(Disk(path=top, format="qcow2"), "disk0")
    assert (node["driver"], node["node-name"], node["read-only"]) == ("qcow2", "disk0", False)
    assert (node["backing"]["driver"], node["backing"]["read-only"]) == ("qcow2", True)
    assert node["backing"]["file"] == {"driver": "file", "filename": str(middle), "read-only": True}
    assert node["backing"]["backing"]["driver"] == "raw"
    assert "backing" not in node["backing"]["backing"]
    assert overlay_node(top, "disk0.1")["backing"] is None


def test_a_raw_disk_is_never_looked_into(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(build_overlay_header("/etc/passwd", "raw", MIB))  # a guest wrote that
    node = disk_node(Disk(path=disk, format="raw", read_only=True), "disk0")
    assert (node["driver"], node["read-only"], "backing" in node) == ("raw", True, False)


def test_a_chain_that_is_unsafe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"no qcow2")
    with pytest.raises(UnsafeDisk, match=r"disk: not a qcow2"):
        disk_node(Disk(path=disk, format="qcow2"), "disk0")
    disk.write_bytes(build_overlay_header("/base", "raw", MIB).replace(b"raw\0", b"vmdk"))
    with pytest.raises(UnsafeDisk):
        disk_node(Disk(path=disk, format="qcow2"), "disk0")
    monkeypatch.setattr(disk_chain, "_MAX_LAYERS", 3)
    disk.write_bytes(build_overlay_header("disk", "qcow2", MIB))  # a loop
    with pytest.raises(UnsafeDisk, match="more than 3 layers"):
        disk_node(Disk(path=disk, format="qcow2"), "disk0")


def test_why_there_is_no_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capable = HostCpu(vendor="GenuineIntel", model="", flags=frozenset({"vmx"}))
    assert "neither vmx nor svm" in kvm_limitation(replace(capable, flags=frozenset())).detail
    monkeypatch.setattr("vmm.qemu.installation._KVM", tmp_path / "kvm")
    assert "there is no" in kvm_limitation(capable).detail
    (tmp_path / "kvm").touch()
    assert "can't be opened" in kvm_limitation(capable).detail
