"""The driver on real QEMU with the test guest: boot, pause, save, clones, clones of clones, endings."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from anyio.to_thread import run_sync

from spec.compatibility import check_restorable
from spec.errors import FileMissing, IncompatibleSnapshot, InternalError, InUse, VmmExited, VmmRefused, VmmTimeout
from spec.sizes import GIB, MIB
from vmm import shared_memory
from vmm.driver import Disk, Machine, Ram, RuntimeReport, SaveTarget, SharedMemory, VmmFiles
from vmm.overlays import create_overlay
from vmm.process import VmmProcess
from vmm.qemu import Qemu
from vmm.qemu.snapshot import BOARD_FILE, STATE_FILE, QemuSaved
from vmm.qemu.vm import QemuVm

pytestmark = pytest.mark.real

RAM_BYTES = 64 * MIB
DISK_BYTES = 8 * MIB
TICK = re.compile(r"tick nonce=(\w{16}) count=(\w{8}) shm=(\w{16}|-)\n")


@pytest.fixture
async def report() -> RuntimeReport:
    report = await Qemu().probe()
    if not report.runnable:
        pytest.skip("; ".join(limitation.detail for limitation in report.limitations))
    return report


class Host:
    """Machines of one test in one tmpfs directory, all ended with it."""

    def __init__(self, directory: Path, kernel: Path) -> None:
        self.directory = directory
        self.kernel = kernel
        self.driver = Qemu()
        self.vms: list[QemuVm] = []

    def machine(
        self,
        args: str = "",
        *,
        image: Path | None = None,
        disks: tuple[Disk, ...] = (),
        cpus: int = 1,
        ram_bytes: int = RAM_BYTES,
    ) -> Machine:
        """A machine with files of its own; a clone of ``image`` if given."""
        directory = self.directory / uuid4().hex
        directory.mkdir()
        device = SharedMemory(name="mailbox", path=directory / "mailbox", size_bytes=MIB)
        shared_memory.create(device.path, device.size_bytes)
        ram = Ram(path=image or directory / "ram", size_bytes=ram_bytes, private=image is not None)
        return Machine(
            cpus=cpus, ram=ram, kernel=self.kernel, initrd=None, kernel_args=args, disks=disks, devices=(device,)
        )  # fmt: skip

    def files(self, machine: Machine, generation: int = 0) -> VmmFiles:
        directory = machine.devices[0].path.parent
        return VmmFiles(
            directory=directory, console=directory / "console", log=directory / "log", generation=generation
        )  # fmt: skip

    async def spawn(self, machine: Machine, generation: int = 0) -> QemuVm:
        vm = await self.driver.spawn(machine, self.files(machine, generation), incoming=machine.ram.private)
        self.vms.append(vm)
        return vm

    async def booted(self, args: str = "", *, disks: tuple[Disk, ...] = (), cpus: int = 1) -> QemuVm:
        vm = await self.spawn(self.machine(args, disks=disks, cpus=cpus))
        await vm.boot()
        return vm

    async def save(self, vm: QemuVm, *overlays: Disk) -> tuple[QemuSaved, Path]:
        await vm.pause()
        state_dir = self.directory / uuid4().hex / "state"
        state_dir.mkdir(parents=True)
        return await vm.save(SaveTarget(state_dir=state_dir, overlays=overlays)), state_dir

    async def saved(self) -> tuple[QemuVm, Path, Path]:
        """A machine paused and saved after some ticks: itself, its image and its state."""
        original = await self.booted()
        await self.ticks(original, 3)
        saved, state_dir = await self.save(original)
        assert not saved.in_place
        return original, original.machine.ram.path, state_dir

    async def clone(self, image: Path, state_dir: Path, *disks: Disk, resume: bool = True) -> QemuVm:
        clone = await self.spawn(self.machine(image=image, disks=disks))
        await clone.restore(state_dir, resume=resume)
        return clone

    def overlay(self, backing: Path) -> Disk:
        path = self.directory / f"{uuid4().hex}.qcow2"
        create_overlay(path, backing, "qcow2", DISK_BYTES)
        return Disk(path=path, format="qcow2")

    def console(self, vm: QemuVm) -> str:
        return self.files(vm.machine).console.read_text()

    async def ticks(self, vm: QemuVm, least: int = 1) -> list[tuple[str, int, str]]:
        """(nonce, count, shared memory) of each tick, once there are ``least``."""
        await self.until(lambda: len(TICK.findall(self.console(vm))) >= least)
        return [(nonce, int(count, 16), shm) for nonce, count, shm in TICK.findall(self.console(vm))]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not await run_sync(condition):  # noqa: ASYNC110 (a test's view from outside)
                await asyncio.sleep(0.01)


@pytest.fixture
async def host(report: RuntimeReport, tmpfs_dir: Path, guest_kernel: Path) -> AsyncIterator[Host]:
    host = Host(tmpfs_dir, guest_kernel)
    try:
        yield host
    finally:
        for vm in host.vms:
            await vm.stop(guest_grace_s=0)
    leftovers = [path.name for path in tmpfs_dir.rglob("*.sock")]
    assert not leftovers


@pytest.fixture
def base_disk(host: Host) -> Path:
    base = host.directory / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(base), str(DISK_BYTES))
    return base


def qemu_img(*arguments: str) -> str:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    return subprocess.run(["qemu-img", *arguments], check=True, timeout=30, capture_output=True, text=True).stdout


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_the_report_names_what_is_here(report: RuntimeReport) -> None:
    assert report.usable
    assert report.target is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+", report.target.version)
    assert re.fullmatch(r"pc-q35-[\d.]+\+1", report.target.machine_type)
    assert report.features == {"ivshmem", "restore", "snapshot", "snapshot-in-place"}
    if report.target.accelerator == "tcg":
        assert report.target.cpu_flags == []
        assert "kvm.unusable" in {each.code for each in report.limitations}


async def test_a_cold_boot_ticks_stands_still_when_paused_and_goes_on(host: Host) -> None:
    vm = await host.booted()
    (nonce, *_), *_ = await host.ticks(vm, 2)
    assert host.console(vm).startswith(f"boot nonce={nonce}\n")  # the firmware keeps quiet
    await vm.pause()
    stood = host.console(vm)
    await asyncio.sleep(0.2)
    assert host.console(vm) == stood
    await vm.pause()  # again does no harm
    await vm.resume()
    await host.until(lambda: len(host.console(vm)) > len(stood))
    use = await vm.memory_use()
    assert use.image_shared_bytes == 0
    assert MIB // 4 < use.ram_private_bytes < RAM_BYTES
    ending = await vm.stop(guest_grace_s=0)
    assert (ending.code, ending.signal, ending.guest) == (0, None, None)
    assert await vm.stop(guest_grace_s=5) == ending  # again
    assert await vm.wait_ended() == ending


async def test_eight_clones_go_on_from_one_moment_and_share_the_image(host: Host) -> None:
    original, image, state_dir = await host.saved()
    assert sorted(path.name for path in state_dir.iterdir()) == [BOARD_FILE, STATE_FILE]
    assert (state_dir / STATE_FILE).stat().st_size < MIB
    (nonce, *_), *_, (_, last, _) = await host.ticks(original)
    await original.stop(guest_grace_s=0)
    before = digest(image)

    machines = [host.machine(image=image) for _ in range(8)]
    for number, machine in enumerate(machines):
        shared_memory.write(machine.devices[0].path, 0, f"clone{number:3}".encode())
    clones = await asyncio.gather(*(host.spawn(machine) for machine in machines))
    await asyncio.gather(*(clone.restore(state_dir, resume=True) for clone in clones))
    for number, clone in enumerate(clones):
        ticks = await host.ticks(clone, 4)
        assert {each[0] for each in ticks} == {nonce}
        counts = [count for _, count, _ in ticks]
        assert counts[0] in (last, last + 1, last + 2)  # a line may have been cut by the snapshot
        assert counts == list(range(counts[0], counts[0] + len(counts)))
        assert ticks[-1][2] == f"clone{number:3}".encode().hex()  # what the host wrote, the guest sees,
        seen = shared_memory.read(clone.machine.devices[0].path, 16, 4)
        assert int.from_bytes(seen, "little") >= counts[-1]  # and the other way round
        use = await clone.memory_use()
        assert 64 * 4096 <= use.ram_private_bytes < 4 * MIB
        assert use.process_private_bytes < 32 * MIB
        assert use.image_shared_bytes > 0
    assert digest(image) == before


async def test_a_parked_clone_waits_for_resume(host: Host) -> None:
    _, image, state_dir = await host.saved()
    clone = await host.clone(image, state_dir, resume=False)
    await asyncio.sleep(0.15)
    assert host.console(clone) == ""
    await clone.resume()
    await host.ticks(clone, 1)


async def test_a_successor_that_waits_since_before_the_pause_goes_on_with_console_and_disk(
    host: Host, base_disk: Path
) -> None:
    disk = host.overlay(base_disk)
    original = await host.booted(disks=(disk,), cpus=2)
    await host.ticks(original, 3)
    image = host.directory / "image"
    image.hardlink_to(original.machine.ram.path)
    ram = Ram(path=image, size_bytes=RAM_BYTES, private=True)
    machine = replace(original.machine, ram=ram, disks=(host.overlay(disk.path),))
    successor = await host.spawn(machine, generation=1)
    saved, state_dir = await host.save(original)
    assert not saved.in_place
    await saved.complete(host.directory / "not written")
    assert not (host.directory / "not written").exists()
    history, frozen, ram_then = host.console(original), digest(disk.path), digest(image)
    await successor.restore(state_dir, resume=True)  # the original still exists, but its disk is not locked any more
    ending = await original.stop(guest_grace_s=0)
    assert ending.signal == signal.SIGKILL  # it has no say any more
    await host.until(lambda: len(host.console(successor)) > len(history) + 200)
    assert host.console(successor).startswith(history)
    counts = [count for _, count, _ in await host.ticks(successor)]
    assert counts == list(range(1, len(counts) + 1))  # not a line lost or repeated
    assert (digest(disk.path), digest(image)) == (frozen, ram_then)


async def test_a_snapshot_that_is_given_up_does_no_harm(host: Host, base_disk: Path) -> None:
    vm = await host.booted(disks=(host.overlay(base_disk),))
    before = len(await host.ticks(vm, 2))
    await host.save(vm)
    await vm.resume()
    await host.ticks(vm, before + 2)
    assert (await vm.stop(guest_grace_s=0)).code == 0  # not as one that has been superseded


async def test_a_clone_is_saved_in_place_and_its_own_clone_goes_on_from_there(host: Host, base_disk: Path) -> None:
    first = host.overlay(base_disk)
    original = await host.booted(disks=(first,))
    await host.ticks(original, 3)
    _, state_dir = await host.save(original)
    await original.stop(guest_grace_s=0)
    parent_image = original.machine.ram.path
    before = digest(parent_image)
    second = host.overlay(first.path)
    parent = await host.clone(parent_image, state_dir, second)
    await host.ticks(parent, 3)

    third = host.overlay(second.path)
    saved, second_state = await host.save(parent, third)
    assert saved.in_place
    assert saved.changes is not None
    changed_bytes = saved.changes.copy.stat().st_blocks * 512
    assert 64 * 4096 <= changed_bytes < 4 * MIB  # what it dirtied, not its RAM
    (nonce, last, _) = (await host.ticks(parent))[-1]
    frozen = digest(second.path)
    await parent.resume()
    assert parent.machine.disks == (third,)
    second_image = second_state.parent / "ram"
    await saved.complete(second_image)
    assert not saved.changes.copy.exists()
    assert second_image.stat().st_size == RAM_BYTES
    assert second_image.stat().st_blocks < 2 * parent_image.stat().st_blocks  # holes stayed holes
    assert (await host.ticks(parent, last + 3))[-1][1] > last  # the same process

    grandchild = await host.clone(second_image, second_state, host.overlay(second.path))
    ticks = await host.ticks(grandchild, 2)
    assert ticks[0][0] == nonce
    assert ticks[0][1] in (last, last + 1, last + 2)
    assert (digest(parent_image), digest(second.path)) == (before, frozen)
    _, third_state = await host.save(parent, host.overlay(third.path))  # and again
    assert third_state.exists()


async def test_a_clone_is_saved_once_per_overlay(host: Host, base_disk: Path) -> None:
    disk = host.overlay(base_disk)
    original = await host.booted(disks=(disk,))
    _, state_dir = await host.save(original)
    await original.stop(guest_grace_s=0)
    clone = await host.clone(original.machine.ram.path, state_dir, host.overlay(disk.path))
    with pytest.raises(InternalError):
        await host.save(clone)
    not_there = Disk(path=host.directory / "nothing.qcow2", format="qcow2")
    with pytest.raises(VmmRefused, match=r"blockdev-add: .*nothing\.qcow2"):
        await host.save(clone, not_there)
    await clone.resume()
    await host.ticks(clone, 2)
    saved, _ = await host.save(clone, host.overlay(clone.machine.disks[0].path))
    await saved.complete(host.directory / "image")
    taken = host.directory / "taken"
    taken.touch()
    saved, _ = await host.save(clone, host.overlay(clone.machine.disks[0].path))
    with pytest.raises(InUse):
        await saved.complete(taken)


async def test_a_save_during_the_firmware_waits_for_the_kernel(host: Host) -> None:
    vm = await host.booted()
    _, state_dir = await host.save(vm)
    await vm.stop(guest_grace_s=0)
    clone = await host.clone(vm.machine.ram.path, state_dir)
    assert [count for _, count, _ in await host.ticks(clone, 3)][:2] == [1, 2]


async def test_compatibility_is_what_a_restore_here_asks_for(host: Host, report: RuntimeReport) -> None:
    vm = await host.booted()
    saved, _ = await host.save(vm)
    assert report.target is not None
    check_restorable(saved.compatibility, report.target)
    (region,) = saved.compatibility.regions
    assert (region.guest_address, region.image_offset, region.size_bytes) == (0, 0, RAM_BYTES)
    assert [each.name for each in saved.compatibility.devices] == ["mailbox"]


async def test_ram_beyond_the_pci_hole_comes_through(host: Host) -> None:
    vm = await host.spawn(host.machine(ram_bytes=3 * GIB))
    await vm.boot()
    await host.ticks(vm, 1)
    saved, state_dir = await host.save(vm)
    assert [each.image_offset for each in saved.compatibility.regions] == [0, 2 * GIB]
    clone = await host.spawn(host.machine(image=vm.machine.ram.path, ram_bytes=3 * GIB))
    await clone.restore(state_dir, resume=True)
    await host.ticks(clone, 1)
    saved, _ = await host.save(clone)
    await saved.complete(host.directory / "image")
    assert (host.directory / "image").stat().st_size == 3 * GIB


async def test_other_hardware_is_refused_before_qemu_sees_it(host: Host, base_disk: Path) -> None:
    _, image, state_dir = await host.saved()
    machine = host.machine(image=image)
    for other in (
        replace(machine, cpus=2),
        replace(machine, devices=()),
        replace(machine, disks=(host.overlay(base_disk),)),
    ):
        clone = await host.driver.spawn(other, host.files(machine), incoming=True)
        with pytest.raises(IncompatibleSnapshot):
            await clone.restore(state_dir, resume=True)
        await clone.stop(guest_grace_s=0)


@pytest.mark.parametrize("damage", ["truncated", "zeros", "other"])
async def test_damaged_device_state_is_an_error_and_no_hang(host: Host, damage: str) -> None:
    _, image, state_dir = await host.saved()
    state = (state_dir / STATE_FILE).read_bytes()
    bad = {"truncated": state[: len(state) // 2], "zeros": bytes(len(state)), "other": b"SSH-2.0" * 100}
    (state_dir / STATE_FILE).write_bytes(bad[damage])
    clone = await host.spawn(host.machine(image=image))
    with pytest.raises(
        VmmExited, match=r"exited with code 1 while waiting for the confirmation that the device state is loaded: \S+"
    ):
        await clone.restore(state_dir, resume=True)
    (state_dir / STATE_FILE).unlink()
    with pytest.raises(FileMissing):
        await clone.restore(state_dir, resume=True)


@pytest.mark.parametrize("guest", ["shutdown", "panic", "reset"])
async def test_how_the_guest_ended_is_known(host: Host, guest: str) -> None:
    mode = {"shutdown": "off", "panic": "panic", "reset": "triple"}[guest]
    vm = await host.booted(f"mode={mode}")
    async with asyncio.timeout(20):
        ending = await vm.wait_ended()
    assert (ending.code, ending.guest) == (0, guest)


async def test_a_guest_that_ignores_the_power_button_is_ended_all_the_same(host: Host) -> None:
    vm = await host.booted()
    await host.ticks(vm)
    ending = await vm.stop(guest_grace_s=0.2)
    assert (ending.code, ending.guest) == (0, None)


async def test_a_paused_guest_is_not_waited_for(host: Host) -> None:
    vm = await host.booted()
    await vm.pause()
    async with asyncio.timeout(10):
        assert (await vm.stop(guest_grace_s=60)).code == 0


async def test_a_flood_of_output_blocks_nobody(host: Host) -> None:
    vm = await host.booted("mode=flood")
    await host.until(lambda: host.console(vm).count("flood") > 1000)
    await vm.pause()
    await vm.resume()
    assert (await vm.stop(guest_grace_s=0)).signal is None


async def test_a_killed_qemu_is_noticed_at_once_by_everybody(host: Host) -> None:
    vm = await host.booted()
    waiting = [asyncio.create_task(vm.wait_ended()) for _ in range(3)]
    await host.ticks(vm)
    os.kill(vm.pid, signal.SIGKILL)
    async with asyncio.timeout(1):
        endings = await asyncio.gather(*waiting)
    assert {(ending.code, ending.signal) for ending in endings} == {(None, signal.SIGKILL)}
    with pytest.raises(VmmExited, match="was killed by SIGKILL while waiting for the reply to stop"):
        await vm.pause()


async def test_a_stopped_process_times_out_and_can_be_ended(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = await host.booted()
    os.kill(vm.pid, signal.SIGSTOP)
    for name in ("_CALL_LIMIT_S", "_QUIT_LIMIT_S", "_TERMINATE_LIMIT_S"):
        monkeypatch.setattr(f"vmm.qemu.vm.{name}", 0.1)
    with pytest.raises(VmmTimeout, match="no reply to stop after"):
        await vm.pause()
    assert (await vm.stop(guest_grace_s=0.1)).signal == signal.SIGKILL


async def test_what_is_not_there_is_told_before_a_process_starts(host: Host) -> None:
    machine = host.machine()
    missing = host.directory / "missing"
    for broken in (
        replace(machine, kernel=missing),
        replace(machine, initrd=missing),
        replace(machine, disks=(Disk(path=missing, format="qcow2"),)),
        replace(machine, devices=(replace(machine.devices[0], path=missing),)),
        replace(machine, ram=replace(machine.ram, path=missing, private=True)),
    ):
        with pytest.raises(FileMissing, match="missing"):
            await host.driver.spawn(broken, host.files(machine), incoming=False)
    assert [path.name for path in machine.ram.path.parent.iterdir()] == ["mailbox"]


async def test_a_kernel_that_is_none_is_an_early_exit_and_the_ram_file_goes(host: Host) -> None:
    machine = host.machine()
    kernel = host.directory / "kernel"
    kernel.write_bytes(b"no kernel")
    with pytest.raises(VmmExited, match=r"exited with code 1 while waiting for the QMP greeting: .*kernel"):
        await host.spawn(replace(machine, kernel=kernel))
    assert sorted(path.name for path in machine.ram.path.parent.iterdir()) == ["console", "log", "mailbox"]


async def test_ram_that_exists_is_never_overwritten(host: Host) -> None:
    machine = host.machine()
    machine.ram.path.write_bytes(b"somebody's")
    with pytest.raises(InUse):
        await host.spawn(machine)
    assert machine.ram.path.read_bytes() == b"somebody's"


async def test_another_daemon_takes_over(host: Host, base_disk: Path) -> None:
    """The process is a child of this one, so let another object stand for the other daemon."""
    first = host.overlay(base_disk)
    original = await host.booted(disks=(first,))
    _, state_dir = await host.save(original)
    await original.stop(guest_grace_s=0)
    clone = await host.clone(original.machine.ram.path, state_dir, host.overlay(first.path))
    await host.save(clone, host.overlay(clone.machine.disks[0].path))
    await clone.detach()
    later = await Qemu().attach(clone.machine, host.files(clone.machine), clone.pid)
    host.vms[-1] = later
    await later.resume()
    await host.save(later, host.overlay(later.machine.disks[0].path))
    assert (await later.stop(guest_grace_s=0)).signal is None


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.005, 0.009])
async def test_a_cancelled_start_leaves_nothing(host: Host, delay_s: float) -> None:
    await host.spawn(host.machine())  # the driver knows its QEMU then
    machine = host.machine()
    task = asyncio.create_task(host.spawn(machine))
    await asyncio.sleep(delay_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {path.name for path in machine.ram.path.parent.iterdir()} <= {"console", "log", "mailbox"}


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.005])
async def test_a_cancelled_restore_can_be_ended(host: Host, delay_s: float) -> None:
    _, image, state_dir = await host.saved()
    clone = await host.spawn(host.machine(image=image))
    task = asyncio.create_task(clone.restore(state_dir, resume=True))
    await asyncio.sleep(delay_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await clone.stop(guest_grace_s=0)).code == 0


async def test_a_cancelled_stop_leaves_nothing(host: Host) -> None:
    vm = await host.booted()
    os.kill(vm.pid, signal.SIGSTOP)
    task = asyncio.create_task(vm.stop(guest_grace_s=0))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await vm.wait_ended()).signal == signal.SIGKILL


async def test_a_long_path_with_commas_is_no_obstacle(host: Host) -> None:
    machine = host.machine()
    directory = machine.devices[0].path.parent / ("a,b=c" * 24)
    directory.mkdir()
    files = VmmFiles(directory=directory, console=directory / "console", log=directory / "log")
    machine = replace(machine, ram=replace(machine.ram, path=directory / "ram"))
    vm = await host.driver.spawn(machine, files, incoming=False)
    await vm.boot()
    await host.until(lambda: "tick" in files.console.read_text())
    await vm.stop(guest_grace_s=0)
    assert sorted(path.name for path in directory.iterdir()) == ["console", "log", "ram"]


async def test_a_vanished_process_cannot_be_attached_to(host: Host) -> None:
    machine = host.machine()
    gone = VmmProcess.spawn(["true"], stderr=host.files(machine).log)
    await gone.wait()
    with pytest.raises(VmmExited):
        await host.driver.attach(machine, host.files(machine), gone.pid)
