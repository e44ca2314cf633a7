"""The parts of the Cloud Hypervisor driver without a process: replies, events, configurations, snapshot files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.errors import CorruptRamsnap, IncompatibleSnapshot, UnsupportedManifest
from spec.sizes import GIB, MIB
from vmm.cloud_hypervisor import snapshot
from vmm.cloud_hypervisor.api import error_message, parse_head
from vmm.cloud_hypervisor.config import hardware, vm_config
from vmm.cloud_hypervisor.events import EventReader, guest_endings, make_pipe, parse_events
from vmm.cloud_hypervisor.probe import cpu_limitations, restore_target
from vmm.cpu import HostCpu
from vmm.driver import Disk, Machine, Ram, SharedMemory

MACHINE = Machine(
    cpus=2,
    ram=Ram(path=Path("/images/one/ram"), size_bytes=256 * MIB, private=True),
    kernel=Path("/store/kernel"),
    initrd=Path("/store/initrd"),
    kernel_args="console=ttyS0",
    disks=(
        Disk(path=Path("/instances/a/disk-0.qcow2"), format="qcow2"),
        Disk(path=Path("/d/b.raw"), format="raw", read_only=True),
    ),
    devices=(SharedMemory(name="mailbox", path=Path("/instances/a/mailbox"), size_bytes=MIB),),
)


@given(st.binary(max_size=200))
def test_no_head_breaks_the_parser(head: bytes) -> None:
    try:
        status, length = parse_head(head)
    except ValueError:
        return
    assert 0 <= status <= 999
    assert length >= 0


@given(
    st.integers(100, 999),
    st.integers(0, 10**10),
    st.sampled_from(["Content-Length", "content-length", "CONTENT-LENGTH"]),
)
def test_heads_of_http_are_read(status: int, length: int, name: str) -> None:
    head = f"HTTP/1.1 {status} Reason\r\nServer: Cloud Hypervisor\r\n{name}:  {length} \r\n\r\n"
    assert parse_head(head.encode()) == (status, length)
    assert parse_head(b"HTTP/1.1 204 \r\n\r\n") == (204, 0)


@given(st.one_of(st.binary(max_size=300), st.lists(st.text()).map(json.dumps).map(str.encode)))
def test_every_error_reply_has_a_message(body: bytes) -> None:
    assert 0 < len(error_message(body)) <= 2000


def event(source: str, name: str, **properties: str) -> str:
    value = {"timestamp": {"secs": 1, "nanos": 2}, "source": source, "event": name, "properties": properties or None}
    return json.dumps(value, indent=2) + "\n\n"


names = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.lists(st.tuples(names, names, names)), st.integers(0, 400))
def test_events_are_read_and_a_cut_loses_only_the_cut_one(events: list[tuple[str, str, str]], cut: int) -> None:
    text = "".join(event(source, name, event=value) for source, name, value in events)
    assert list(parse_events(text)) == events
    kept = list(parse_events(text[: max(0, len(text) - cut)]))
    assert kept == events[: len(kept)]
    tail = list(parse_events(text[cut:]))  # as when what came before is lost
    assert tail == events[len(events) - len(tail) :]


@given(st.text(st.sampled_from('{}[]",:\n ab1'), max_size=80))
def test_no_text_breaks_the_event_parser(text: str) -> None:
    list(parse_events(text))


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([("vm", "booted", "")], []),
        ([("vm", "booted", ""), ("vm", "shutdown", ""), ("vm", "deleted", "")], ["shutdown"]),
        ([("vm", "booted", ""), ("guest", "panic", "panic"), ("vm", "shutdown", "")], ["panic", "shutdown"]),
        ([("guest", "panic", "crash_loaded"), ("guest", "panic", "unknown_event")], []),
        ([("vm", "rebooting", ""), ("vm", "rebooted", "")], ["reset"]),
        ([("vmm", "shutdown", "")], []),
    ],
)
def test_how_a_guest_ended(events: list[tuple[str, str, str]], expected: list[str]) -> None:
    assert list(guest_endings("".join(event(a, b, event=c) for a, b, c in events))) == expected


async def test_a_pipe_of_events_is_bounded_read_by_whoever_comes_and_told_once(tmp_path: Path) -> None:
    writer = make_pipe(tmp_path / "events")
    told: list[str] = []
    try:
        written = 0
        with contextlib.suppress(BlockingIOError):
            while written < 1 << 24:
                written += os.write(writer, event("noise", "noise").encode())
        assert written <= 1 << 20, "a guest that causes events with nobody there fills the pipe, and no more"
        first = EventReader(tmp_path / "events", told.append)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(BlockingIOError):
                    os.write(writer, event("guest", "panic", event="panic").encode())
                    break
                await asyncio.sleep(0.01)
        first.close()  # the daemon ends
        heard: asyncio.Queue[str] = asyncio.Queue()
        second = EventReader(tmp_path / "events", heard.put_nowait)
        async with asyncio.timeout(20):
            told.append(await heard.get())
        os.write(writer, event("vm", "shutdown").encode())
    finally:
        os.close(writer)
    second.finish()
    assert told == ["panic"]
    assert second.ending == "panic"
    second.finish()


async def test_there_may_be_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "events").write_text(event("vm", "shutdown"))
    for name in ("events", "missing"):
        reader = EventReader(tmp_path / name, pytest.fail)
        reader.finish()
        assert reader.ending is None


def test_a_machine_in_cloud_hypervisors_words() -> None:
    config = vm_config(MACHINE)
    (zone,) = config["memory"]["zones"]
    assert zone == {"id": "ram", "size": 256 * MIB, "file": "/images/one/ram", "shared": False}
    assert [disk["image_type"] for disk in config["disks"]] == ["Qcow2", "Raw"]
    assert [disk["backing_files"] for disk in config["disks"]] == [True, False]
    assert [disk["readonly"] for disk in config["disks"]] == [False, True]
    assert config["payload"]["initramfs"] == "/store/initrd"
    assert config["serial"] == {"mode": "Tty"}
    assert vm_config(replace(MACHINE, ram=replace(MACHINE.ram, private=False)))["memory"]["zones"][0]["shared"] is True


def test_hardware_has_no_path_and_no_owner() -> None:
    assert "/" not in json.dumps(hardware(MACHINE)).replace("/dev/urandom", "")
    moved = replace(
        MACHINE,
        ram=replace(MACHINE.ram, path=Path("/elsewhere"), private=False),
        disks=tuple(replace(disk, path=Path("/other")) for disk in MACHINE.disks),
        kernel=Path("/other/kernel"),
    )
    assert hardware(moved) == hardware(MACHINE)


def test_two_shared_memories_are_one_too_many() -> None:
    with pytest.raises(UnsupportedManifest):
        vm_config(replace(MACHINE, devices=MACHINE.devices * 2))


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (replace(MACHINE, cpus=1), "cpus"),
        (replace(MACHINE, ram=replace(MACHINE.ram, size_bytes=GIB)), "memory"),
        (replace(MACHINE, disks=()), "disks"),
        (replace(MACHINE, devices=()), "ivshmem"),
    ],
)
def test_other_hardware_is_named(tmp_path: Path, other: Machine, part: str) -> None:
    recorded = tmp_path / "config.json"
    recorded.write_text(json.dumps(hardware(MACHINE)))
    snapshot.check_hardware(MACHINE, recorded)
    with pytest.raises(IncompatibleSnapshot, match=f"^{part}: ") as caught:
        snapshot.check_hardware(other, recorded)
    assert caught.value.fields["property"] == part


@given(st.binary(max_size=100))
def test_a_recorded_configuration_of_any_bytes(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        recorded = Path(directory) / "config.json"
        recorded.write_bytes(data)
        with pytest.raises((CorruptRamsnap, IncompatibleSnapshot)):
            snapshot.check_hardware(MACHINE, recorded)


def state(*mappings: tuple[int, int, int], copied: list[dict[str, int]]) -> str:
    """A state.json with the part that is read and some that is kept."""
    memory = {
        "memory_ranges": {"data": copied},
        "guest_ram_mappings": [
            {"slot": 0, "gpa": gpa, "size": size, "zone_id": "ram", "virtio_mem": False, "file_offset": offset}
            for gpa, size, offset in mappings
        ],
        "boot_ram": 2**64 - 1,
    }
    holder = {"state": json.dumps(memory, separators=(",", ":"))}
    parts = {"memory-manager": {"snapshots": {}, "snapshot_data": holder}, "cpu-manager": {}}
    return json.dumps({"snapshots": parts, "snapshot_data": {"state": "kept"}})


@pytest.mark.parametrize("overwritten", [False, True])
def test_a_snapshot_forgets_the_copy_of_a_private_ram(tmp_path: Path, overwritten: bool) -> None:
    snapshot.refuse_ram_copy(tmp_path)
    with pytest.raises(FileExistsError):
        (tmp_path / "memory-ranges").open("x")
    if overwritten:
        (tmp_path / "memory-ranges").write_bytes(bytes(4 * MIB))
    mappings = (0, 3 * MIB, 0), (GIB, MIB, 3 * MIB)
    (tmp_path / "state.json").write_text(state(*mappings, copied=[{"gpa": 0, "length": 4 * MIB}]))
    regions = snapshot.tidy(MACHINE, tmp_path)
    assert [(each.guest_address, each.size_bytes, each.image_offset) for each in regions] == list(mappings)
    assert json.loads((tmp_path / "state.json").read_text()) == json.loads(state(*mappings, copied=[]))
    assert json.loads((tmp_path / "config.json").read_text()) == hardware(MACHINE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "state.json"]


def test_the_cpu_is_part_of_the_target() -> None:
    cpu = HostCpu(vendor="GenuineIntel", model="A CPU", flags=frozenset({"vmx", "fpu"}))
    target = restore_target("v53.0", cpu)
    assert (target.accelerator, target.cpu_model, target.cpu_flags) == ("kvm", "host", ["fpu", "vmx"])
    assert cpu_limitations(cpu) == []
    assert [each.code for each in cpu_limitations(replace(cpu, flags=frozenset({"fpu"})))] == [
        "kvm.no_hardware_virtualisation"
    ]
