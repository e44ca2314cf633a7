"""The driver against a VMM that misbehaves: an executable in QEMU's place, with a knob for each fault."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from signal import SIGKILL
from typing import Any

import msgspec
import pytest

from spec.errors import (
    CorruptRamsnap,
    FileMissing,
    MemoryNotShared,
    MissingTool,
    OvmsError,
    PermissionMissing,
    VmmExited,
    VmmGarbage,
    VmmRefused,
    VmmTimeout,
)
from spec.sizes import MIB
from vmm.driver import Disk, Machine, Ram, SaveTarget, VmmFiles
from vmm.overlays import create_overlay
from vmm.qemu import Qemu
from vmm.qemu.snapshot import BOARD_FILE, STATE_FILE, write_board
from vmm.qemu.vm import QemuVm

FAKE = Path(__file__).with_name("fake_qemu.py")


class Bench:
    """A fake VMM in a directory of its own, and a machine for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.binary = directory / "fake-qemu"
        self.binary.write_text(f"#!{sys.executable} -IS\n{FAKE.read_text()}")
        self.binary.chmod(0o755)
        self.kernel = directory / "kernel"
        self.kernel.touch()
        self.image = directory / "image"
        self.image.write_bytes(bytes(MIB))
        self.state_dir = directory / "state"
        self.state_dir.mkdir()
        (self.state_dir / STATE_FILE).write_text("devices")
        write_board(self.machine(private=True), self.state_dir)
        self.files = VmmFiles(directory=directory, console=directory / "console", log=directory / "log")
        self.before = {path.name for path in directory.iterdir()} | {"faults", "console", "log", "ram"}

    def machine(self, *, private: bool = False, disks: tuple[Disk, ...] = ()) -> Machine:
        path = self.image if private else self.directory / "ram"
        ram = Ram(path=path, size_bytes=MIB, private=private)
        return Machine(cpus=1, ram=ram, kernel=self.kernel, initrd=None, kernel_args="", disks=disks)

    async def spawn(self, faults: dict[str, Any], *, private: bool = False, disks: tuple[Disk, ...] = ()) -> QemuVm:
        (self.directory / "faults").write_bytes(msgspec.json.encode(faults))
        machine = self.machine(private=private, disks=disks)
        return await Qemu(self.binary).spawn(machine, self.files, incoming=private)

    def target(self) -> SaveTarget:
        target = self.directory / "target"
        target.mkdir()
        self.before.add("target")
        return SaveTarget(state_dir=target)

    def leftovers(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()} - self.before


SHORT_S = 1.5


@pytest.fixture
def bench(tmpfs_dir: Path) -> Bench:
    return Bench(tmpfs_dir)


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CALL_LIMIT_S", "_LOAD_LIMIT_S", "_QUIT_LIMIT_S", "_TERMINATE_LIMIT_S", "_FIRMWARE_LIMIT_S"):
        monkeypatch.setattr(f"vmm.qemu.vm.{name}", SHORT_S)
    # A fake that answers is a Python program that has to start: on a busy machine that takes seconds.
    monkeypatch.setattr("vmm.qemu.driver._START_LIMIT_S", 30.0)


FAULTS: list[tuple[str, type[OvmsError], str]] = [
    ("hang", VmmTimeout, rf"no .+ after {SHORT_S} s"),
    ("exit", VmmExited, "exited with code 1 while waiting for the .+: died in {command}"),
    ("hang up", VmmGarbage, "QEMU does not answer {command} in QMP"),
    ("SSH-2.0-OpenSSH\r\n", VmmGarbage, "QEMU does not answer {command} in QMP"),
    ('["return"]\r\n', VmmGarbage, "QEMU does not answer {command} in QMP"),
    ("\xff\xfe\x00\r\n", VmmGarbage, "QEMU does not answer {command} in QMP"),
    ('{"error": {"class": "GenericError", "desc": "no"}}\r\n', VmmGarbage, "QEMU does not answer {command} in QMP"),
    ('{"return": {}, "id": "another"}\r\n', VmmTimeout, rf"no .+ after {SHORT_S} s"),
]


async def act(bench: Bench, vm: QemuVm, command: str) -> None:
    match command:
        case "cont":
            await vm.boot()
        case "getfd" | "migrate-set-capabilities" | "migrate-incoming":
            await vm.restore(bench.state_dir, resume=True)
        case "stop":
            await vm.pause()
        case _:
            await vm.save(bench.target())


RESTORING = ("getfd", "migrate-set-capabilities", "migrate-incoming")


@pytest.mark.parametrize("command", [*RESTORING, "cont", "stop", "xen-save-devices-state", "human-monitor-command"])
@pytest.mark.parametrize(("fault", "error", "message"), FAULTS, ids=[fault[:12] for fault, _, _ in FAULTS])
async def test_each_fault_in_each_call_is_told_and_leaves_nothing(
    bench: Bench, command: str, fault: str, error: type[OvmsError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if error is not VmmTimeout:
        for name in ("_CALL_LIMIT_S", "_LOAD_LIMIT_S"):
            monkeypatch.setattr(f"vmm.qemu.vm.{name}", 20.0)  # no limit is to be reached, however busy the host
    vm = await bench.spawn({command: fault}, private=command in RESTORING)
    with pytest.raises(error, match=message.format(command=command)):
        await act(bench, vm, command)
    await vm.stop(guest_grace_s=0)
    assert bench.leftovers() == set()


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("hang", VmmTimeout, "no QMP greeting after 1 s"),
        ("exit", VmmExited, "exited with code 1 while waiting for the QMP greeting: died in greeting"),
        ("hang up", VmmGarbage, "no QMP at .*sock"),
        ("SSH-2.0-OpenSSH\r\n", VmmGarbage, "no QMP at .*sock"),
        ("[]\r\n", VmmGarbage, "no QMP at .*sock"),
        ('{"QMP": 7}\r\n', VmmGarbage, "no QMP at .*sock"),
        ("\xff\r\n", VmmGarbage, "no QMP at .*sock"),
        ("x" * 11_000_000, VmmGarbage, "no QMP at .*sock"),
    ],
    ids=["hang", "exit", "hang up", "ssh", "list", "number", "bytes", "endless"],
)
async def test_a_greeting_that_is_none(
    bench: Bench, fault: str, error: type[OvmsError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "hang":
        monkeypatch.setattr("vmm.qemu.driver._START_LIMIT_S", 1.0)
    with pytest.raises(error, match=message):
        await bench.spawn({"greeting": fault})
    bench.before.discard("ram")
    assert bench.leftovers() == set()


async def test_a_greeting_without_a_version(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.qemu.driver._START_LIMIT_S", 1.0)
    greeting = '{"QMP": {"version": {"qemu": 7}, "capabilities": []}}\r\n{"return": {}}\r\n'
    with pytest.raises(VmmTimeout):
        await bench.spawn({"greeting": greeting[:-20]})
    assert bench.leftovers() == set()


async def test_a_vmm_that_exits_at_once_says_why(bench: Bench) -> None:
    with pytest.raises(VmmExited, match=r"exited with code 1 .* QMP greeting: no emulator here"):
        await bench.spawn({"start": "exit"})
    assert bench.leftovers() == set()


async def test_a_vmm_that_heeds_nothing_is_killed_in_bounded_time(bench: Bench) -> None:
    vm = await bench.spawn({"stubborn": True, "system_powerdown": "hang"})
    await vm.boot()  # it has set up its deafness
    begun = time.monotonic()
    assert (await vm.stop(guest_grace_s=0.2)).signal == SIGKILL
    assert time.monotonic() - begun < 4
    assert bench.leftovers() == set()


async def test_a_stop_that_is_cancelled_leaves_nothing(bench: Bench) -> None:
    vm = await bench.spawn({"stubborn": True, "quit": "hang"})
    await vm.boot()
    task = asyncio.create_task(vm.stop(guest_grace_s=0))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await vm.wait_ended()).signal == SIGKILL
    assert bench.leftovers() == set()


async def test_a_restore_without_a_mapping_is_no_restore(bench: Bench) -> None:
    vm = await bench.spawn({"cont": "exit"}, private=True)  # says yes to everything else
    with pytest.raises(MemoryNotShared, match="does not map the file at all"):
        await vm.restore(bench.state_dir, resume=True)
    await vm.stop(guest_grace_s=0)
    assert bench.leftovers() == set()


async def test_a_load_that_failed_is_told(bench: Bench) -> None:
    vm = await bench.spawn({"incoming": "failed"}, private=True)
    with pytest.raises(VmmRefused, match="could not load"):
        await vm.restore(bench.state_dir, resume=True)
    await vm.stop(guest_grace_s=0)


@pytest.mark.parametrize("answer", ["", "CR0=", [], {}, None])
async def test_registers_that_are_none(bench: Bench, answer: object) -> None:
    vm = await bench.spawn({"answers": {"human-monitor-command": answer}})
    with pytest.raises(VmmGarbage, match="CR0"):
        await vm.save(bench.target())
    await vm.stop(guest_grace_s=0)


async def test_a_guest_that_never_leaves_its_firmware(bench: Bench) -> None:
    vm = await bench.spawn({"answers": {"human-monitor-command": "CR0=00000011"}})
    with pytest.raises(VmmRefused, match="switched on paging"):
        await vm.save(bench.target())
    await vm.stop(guest_grace_s=0)


@pytest.mark.parametrize("board", ["{", "[]", "", None])
async def test_a_snapshot_without_its_board(bench: Bench, board: str | None) -> None:
    vm = await bench.spawn({}, private=True)
    path = bench.state_dir / BOARD_FILE
    path.unlink() if board is None else path.write_text(board)
    with pytest.raises(FileMissing if board is None else CorruptRamsnap):
        await vm.restore(bench.state_dir, resume=True)
    await vm.stop(guest_grace_s=0)
    assert bench.leftovers() == set()


async def test_a_clone_whose_pages_cannot_be_captured_is_not_saved(bench: Bench) -> None:
    vm = await bench.spawn({}, private=True)
    with pytest.raises(MemoryNotShared):
        await vm.save(bench.target())
    await vm.stop(guest_grace_s=0)
    assert bench.leftovers() == set()


async def test_a_start_that_cannot_be(bench: Bench) -> None:
    bench.before.discard("ram")
    (bench.directory / "faults").write_text("{}")
    with pytest.raises(MissingTool, match="nothing is not an executable"):
        await Qemu(bench.directory / "nothing").spawn(bench.machine(), bench.files, incoming=False)
    elsewhere = VmmFiles(directory=bench.directory / "gone", console=bench.files.console, log=bench.files.log)
    with pytest.raises(FileMissing):
        await Qemu(bench.binary).spawn(bench.machine(), elsewhere, incoming=False)
    disk = Disk(path=bench.directory / "top", format="qcow2")
    create_overlay(disk.path, bench.directory / "no base", "raw", MIB)
    bench.before.add("top")
    with pytest.raises(FileMissing, match="no base"):
        await Qemu(bench.binary).spawn(bench.machine(disks=(disk,)), bench.files, incoming=False)
    assert bench.leftovers() == set()


async def test_a_probe_never_raises(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = await Qemu(bench.directory / "nothing").probe()
    assert (absent.runnable, absent.target, absent.limitations[0].code) == (False, None, "binary.missing")
    assert "apt-get install" in absent.limitations[0].remedy
    report = await Qemu(bench.binary).probe()
    assert report.target is not None
    assert (report.target.version, report.target.machine_type) == ("9.0.1", "pc-q35-9.0+1")
    assert "image.opened_writable" not in {each.code for each in report.limitations}
    monkeypatch.setenv("LANG", "no-q35")
    assert not (await Qemu(bench.binary).probe()).runnable
    for answer in ("something else", "QEMU emulator version 5.2.0"):
        monkeypatch.setenv("TZ", answer)
        broken = await Qemu(bench.binary).probe()
        assert (broken.runnable, broken.target, broken.limitations[0].code) == (False, None, "binary.missing")


async def test_a_replaced_binary_is_looked_at_again(bench: Bench) -> None:
    driver = Qemu(bench.binary)
    (bench.directory / "faults").write_text("{}")
    vm = await driver.spawn(bench.machine(private=True), bench.files, incoming=True)
    await vm.stop(guest_grace_s=0)
    bench.binary.unlink()
    with pytest.raises(MissingTool):
        await driver.spawn(bench.machine(private=True), bench.files, incoming=True)


async def test_an_image_that_an_old_qemu_may_not_open(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU before 8.2 opens it for writing: the owner's image is made writable, another's refused."""
    (bench.directory / "faults").write_text("{}")
    monkeypatch.setenv("TZ", "QEMU emulator version 7.2.0")
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != bench.image and access(path, mode))  # root may anything
    bench.image.chmod(0o444)
    vm = await bench.spawn({}, private=True)
    await vm.stop(guest_grace_s=0)
    assert bench.image.stat().st_mode & 0o777 == 0o644

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(PermissionMissing, match=r"QEMU before 8\.2"):
        await bench.spawn({}, private=True)
