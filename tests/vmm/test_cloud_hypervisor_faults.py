"""The driver against a VMM that misbehaves: an executable in Cloud Hypervisor's place, with a knob for each fault."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from signal import SIGKILL

import msgspec
import pytest

from spec.errors import (
    CorruptRamsnap,
    FileMissing,
    MemoryNotShared,
    MissingTool,
    OvmsError,
    VmmExited,
    VmmGarbage,
    VmmRefused,
    VmmTimeout,
)
from spec.sizes import MIB
from vmm.cloud_hypervisor import CloudHypervisor, snapshot
from vmm.cloud_hypervisor.config import hardware
from vmm.cloud_hypervisor.vm import CloudHypervisorVm
from vmm.driver import Machine, Ram, SaveTarget, VmmFiles

FAKE = Path(__file__).with_name("fake_cloud_hypervisor.py")


class Bench:
    """A fake VMM in a directory of its own, and a machine for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.binary = directory / "fake-vmm"
        self.binary.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
        self.binary.chmod(0o755)
        self.image = directory / "image"
        self.image.write_bytes(bytes(MIB))
        self.state_dir = directory / "state"
        self.state_dir.mkdir()
        (self.state_dir / snapshot.STATE_FILE).write_text("{}")
        self.files = VmmFiles(directory=directory, console=directory / "console", log=directory / "log")
        self.before = {path.name for path in directory.iterdir()} | {"faults", "console", "log", "config.json"}

    def machine(self, *, private: bool = False) -> Machine:
        path = self.image if private else self.directory / "ram"
        ram = Ram(path=path, size_bytes=MIB, private=private)
        return Machine(cpus=1, ram=ram, kernel=Path("/kernel"), initrd=None, kernel_args="")

    async def spawn(self, faults: dict[str, object], *, private: bool = False) -> CloudHypervisorVm:
        (self.directory / "faults").write_bytes(msgspec.json.encode(faults))
        machine = self.machine(private=private)
        (self.state_dir / snapshot.CONFIG_FILE).write_bytes(msgspec.json.encode(hardware(machine)))
        return await CloudHypervisor(self.binary).spawn(machine, self.files, incoming=private)

    def leftovers(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()} - self.before


@pytest.fixture
def bench(tmpfs_dir: Path) -> Bench:
    return Bench(tmpfs_dir)


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CALL_LIMIT_S", "_BOOT_LIMIT_S", "_RESTORE_LIMIT_S", "_QUIT_LIMIT_S", "_TERMINATE_LIMIT_S"):
        monkeypatch.setattr(f"vmm.cloud_hypervisor.vm.{name}", 1.5)  # the fake has to start within the first call


def have_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no limit is to be reached, a busy host shall not reach one."""
    for name in ("_CALL_LIMIT_S", "_BOOT_LIMIT_S", "_RESTORE_LIMIT_S"):
        monkeypatch.setattr(f"vmm.cloud_hypervisor.vm.{name}", 20.0)


FAULTS: list[tuple[str, type[OvmsError], str]] = [
    ("hang", VmmTimeout, "no reply to {command} after"),
    ("exit", VmmExited, "exited with code 1 while waiting for the reply to {command}: died in {command}"),
    ("hang up", VmmGarbage, "{command}: the connection was closed"),
    ('HTTP/1.1 500 No\r\nContent-Length: 25\r\n\r\n["it is","not possible"]  ', VmmRefused, "it is: not possible"),
    ("HTTP/1.1 400 No\r\nContent-Length: 5\r\n\r\nplain", VmmRefused, "{command}: plain"),
    ("SSH-2.0-OpenSSH\r\n\r\n", VmmGarbage, "{command}: the reply is not HTTP"),
    ("x" * 100_000, VmmGarbage, "{command}: the head of the reply has no end"),
    ("HTTP/1.1 200 OK\r\nX: " + "x" * 20_000 + "\r\n\r\n", VmmGarbage, "{command}: the head of the reply has 20"),
    ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", VmmGarbage, "{command}: the reply has 9999"),
    ("HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n", VmmGarbage, "{command}: the reply's content length"),
    ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive!", VmmGarbage, "{command}: the connection was closed"),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", VmmGarbage, "{command}: .*transfer encoding"),
]


async def act(bench: Bench, vm: CloudHypervisorVm, command: str) -> None:
    match command:
        case "vm.create" | "vm.boot":
            await vm.boot()
        case "vm.restore":
            await vm.restore(bench.state_dir, resume=True)
        case "vm.pause":
            await vm.pause()
        case "vm.resume":
            await vm.resume()
        case _:
            target = bench.directory / "target"
            target.mkdir()
            bench.before.add("target")
            await vm.save(SaveTarget(state_dir=target))


@pytest.mark.parametrize("command", ["vm.create", "vm.boot", "vm.restore", "vm.pause", "vm.resume", "vm.snapshot"])
@pytest.mark.parametrize(("fault", "error", "message"), FAULTS, ids=[message[:40] for _, _, message in FAULTS])
async def test_each_fault_in_each_call_is_told_and_leaves_nothing(
    bench: Bench, command: str, fault: str, error: type[OvmsError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if error is not VmmTimeout:
        have_time(monkeypatch)
    vm = await bench.spawn({command: fault}, private=command == "vm.restore")
    with pytest.raises(error, match=message.format(command=command)):
        await act(bench, vm, command)
    await vm.stop(guest_grace_s=0.1)
    assert bench.leftovers() == set()


async def test_a_vmm_that_exits_at_once_says_why(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    have_time(monkeypatch)
    vm = await bench.spawn({"start": "exit"})
    with pytest.raises(VmmExited, match=r"exited with code 1 .* reply to vm\.create: no hypervisor here"):
        await vm.boot()
    ending = await vm.stop(guest_grace_s=0)
    assert (ending.code, ending.guest) == (1, None)
    assert bench.leftovers() == set()


async def test_a_vmm_that_heeds_nothing_is_killed_in_bounded_time(bench: Bench) -> None:
    vm = await bench.spawn({"stubborn": True, "vm.power-button": "hang", "vmm.shutdown": "hang"})
    await vm.pause()  # it has set up its deafness
    begun = time.monotonic()
    assert (await vm.stop(guest_grace_s=0.2)).signal == SIGKILL
    assert time.monotonic() - begun < 4
    assert bench.leftovers() == set()


async def test_a_stop_that_is_cancelled_leaves_nothing(bench: Bench) -> None:
    vm = await bench.spawn({"stubborn": True, "vmm.shutdown": "hang"})
    await vm.pause()
    task = asyncio.create_task(vm.stop(guest_grace_s=0))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await vm.wait_ended()).signal == SIGKILL
    assert bench.leftovers() == set()


async def test_a_restore_without_a_mapping_is_no_restore(bench: Bench) -> None:
    vm = await bench.spawn({}, private=True)  # says yes to everything
    with pytest.raises(MemoryNotShared, match="does not map the file at all"):
        await vm.restore(bench.state_dir, resume=True)
    await vm.stop(guest_grace_s=0)
    assert bench.leftovers() == set()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "state.json that can't be read"),
        ({"state.json": "[]"}, "state.json that can't be read"),
        ({"state.json": '{"snapshots": {}}'}, "state.json that can't be read"),
        ({"memory-ranges": "RAM"}, "copied guest RAM"),
    ],
)
async def test_a_snapshot_that_is_not_what_it_should_be(bench: Bench, files: dict[str, str], message: str) -> None:
    vm = await bench.spawn({"files": files})
    with pytest.raises((VmmGarbage, VmmRefused), match=message):
        await act(bench, vm, "vm.snapshot")
    await vm.stop(guest_grace_s=0)


@pytest.mark.parametrize("reply", ["[]", "{", '{"build_version": 1}'])
async def test_a_ping_without_a_version(bench: Bench, reply: str) -> None:
    vm = await bench.spawn({"vmm.ping": f"HTTP/1.1 200 OK\r\nContent-Length: {len(reply)}\r\n\r\n{reply}"})
    with pytest.raises(VmmGarbage):
        await act(bench, vm, "vm.snapshot")
    await vm.stop(guest_grace_s=0)


async def test_a_snapshot_without_a_configuration(bench: Bench) -> None:
    vm = await bench.spawn({}, private=True)
    (bench.state_dir / snapshot.CONFIG_FILE).write_text("{")
    with pytest.raises(CorruptRamsnap):
        await vm.restore(bench.state_dir, resume=True)
    await vm.stop(guest_grace_s=0)
    assert bench.leftovers() == set()


async def test_a_start_that_cannot_be(bench: Bench) -> None:
    with pytest.raises(MissingTool):
        await CloudHypervisor(bench.directory / "nothing").spawn(bench.machine(), bench.files, incoming=False)
    assert bench.leftovers() == set()
    elsewhere = VmmFiles(directory=bench.directory / "gone", console=bench.files.console, log=bench.files.log)
    with pytest.raises(FileMissing):
        await CloudHypervisor(bench.binary).spawn(bench.machine(), elsewhere, incoming=False)


async def test_a_probe_never_raises(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.directory / "faults").write_text("{}")
    absent = await CloudHypervisor(bench.directory / "nothing").probe()
    assert (absent.runnable, absent.target, absent.limitations[0].code) == (False, None, "binary.missing")
    report = await CloudHypervisor(bench.binary).probe()
    assert report.target is not None
    assert report.target.version == "v0.0-fake"
    assert "ivshmem.not_built" in {each.code for each in report.limitations}
    monkeypatch.setenv("TZ", "something else")
    broken = await CloudHypervisor(bench.binary).probe()
    assert (broken.runnable, broken.target, broken.limitations[0].code) == (False, None, "binary.broken")
    monkeypatch.setattr("vmm.cloud_hypervisor.probe._KVM", bench.directory / "kvm")
    monkeypatch.delenv("TZ")
    no_kvm = await CloudHypervisor(bench.binary).probe()
    assert no_kvm.target is not None
    assert not no_kvm.runnable
    assert "kvm.missing" in {each.code for each in no_kvm.limitations}
