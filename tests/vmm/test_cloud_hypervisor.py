"""The driver on real Cloud Hypervisor with the test guest: boot, pause, save, clones, endings."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from anyio.to_thread import run_sync

from spec.compatibility import check_restorable
from spec.errors import IncompatibleSnapshot, InUse, VmmExited, VmmRefused, VmmTimeout
from spec.sizes import MIB
from vmm import shared_memory
from vmm.cloud_hypervisor import CloudHypervisor
from vmm.cloud_hypervisor.vm import CloudHypervisorVm
from vmm.driver import Disk, Machine, Ram, RuntimeReport, SaveTarget, SharedMemory, VmmFiles
from vmm.process import VmmProcess

pytestmark = pytest.mark.real

RAM_BYTES = 64 * MIB
TICK = re.compile(r"tick nonce=(\w{16}) count=(\w{8}) shm=(\w{16}|-)\n")


@pytest.fixture
async def report() -> RuntimeReport:
    report = await CloudHypervisor().probe()
    if not report.runnable:
        pytest.skip("; ".join(limitation.detail for limitation in report.limitations))
    return report


class Host:
    """Machines of one test in one tmpfs directory, all ended with it."""

    def __init__(self, directory: Path, kernel: Path) -> None:
        self.directory = directory
        self.kernel = kernel
        self.driver = CloudHypervisor()
        self.vms: list[CloudHypervisorVm] = []

    def machine(self, args: str = "", *, image: Path | None = None, disks: tuple[Disk, ...] = ()) -> Machine:
        """A machine with files of its own; a clone of ``image`` if given."""
        directory = self.directory / uuid4().hex
        directory.mkdir()
        device = SharedMemory(name="mailbox", path=directory / "mailbox", size_bytes=MIB)
        shared_memory.create(device.path, device.size_bytes)
        ram = Ram(path=image or directory / "ram", size_bytes=RAM_BYTES, private=image is not None)
        return Machine(
            cpus=1, ram=ram, kernel=self.kernel, initrd=None, kernel_args=args, disks=disks, devices=(device,)
        )  # fmt: skip

    def files(self, machine: Machine, generation: int = 0) -> VmmFiles:
        directory = machine.devices[0].path.parent
        return VmmFiles(
            directory=directory, console=directory / "console", log=directory / "log", generation=generation
        )  # fmt: skip

    async def spawn(self, machine: Machine, generation: int = 0) -> CloudHypervisorVm:
        vm = await self.driver.spawn(machine, self.files(machine, generation), incoming=machine.ram.private)
        self.vms.append(vm)
        return vm

    async def booted(self, args: str = "", *, disks: tuple[Disk, ...] = ()) -> CloudHypervisorVm:
        vm = await self.spawn(self.machine(args, disks=disks))
        await vm.boot()
        return vm

    async def saved(self) -> tuple[CloudHypervisorVm, Path, Path]:
        """A machine paused and saved after some ticks: itself, its image and its state."""
        original = await self.booted()
        await self.ticks(original, 3)
        await original.pause()
        state_dir = self.directory / f"state-{uuid4().hex}"
        state_dir.mkdir()
        saved = await original.save(SaveTarget(state_dir=state_dir))
        assert not saved.in_place
        return original, original.machine.ram.path, state_dir

    def console(self, vm: CloudHypervisorVm) -> str:
        return self.files(vm.machine).console.read_text()

    async def ticks(self, vm: CloudHypervisorVm, least: int = 1) -> list[tuple[str, int, str]]:
        """(nonce, count, shared memory) of each tick, once there are ``least``."""
        await self.until(lambda: len(TICK.findall(self.console(vm))) >= least)
        return [(nonce, int(count, 16), shm) for nonce, count, shm in TICK.findall(self.console(vm))]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
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
    leftovers = [path.name for path in tmpfs_dir.rglob("cloud-hypervisor-*")]
    assert not leftovers


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_the_report_names_what_is_here(report: RuntimeReport) -> None:
    assert report.target is not None
    assert re.match(r"v\d+\.", report.target.version)
    assert {"restore", "snapshot"} <= report.features
    if not report.usable:
        assert {each.code for each in report.limitations} >= {"kvm.no_hardware_virtualisation"}


async def test_a_cold_boot_ticks_stands_still_when_paused_and_goes_on(host: Host) -> None:
    vm = await host.booted()
    (nonce, *_), *_ = await host.ticks(vm, 2)
    assert host.console(vm).startswith(f"boot nonce={nonce}\n")
    await vm.pause()
    stood = host.console(vm)
    await asyncio.sleep(0.2)
    assert host.console(vm) == stood
    begun = time.monotonic()
    with pytest.raises(VmmRefused, match=r"vm\.pause: .+"):
        await vm.pause()
    assert time.monotonic() - begun < 0.15  # who answers is not taken for one that dies
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
    assert sorted(path.name for path in state_dir.iterdir()) == ["config.json", "state.json"]
    assert str(host.directory) not in (state_dir / "config.json").read_text()
    (nonce, *_), *_, (_, last, _) = await host.ticks(original)
    await original.stop(guest_grace_s=0)
    before = digest(image)

    machines = [host.machine(image=image) for _ in range(8)]
    for number, machine in enumerate(machines):
        shared_memory.write(machine.devices[0].path, 0, f"clone{number:3}".encode())
    clones = [await host.spawn(machine) for machine in machines]
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
        assert use.process_private_bytes < 16 * MIB
        assert use.image_shared_bytes > 0
    assert digest(image) == before


async def test_a_parked_clone_waits_for_resume(host: Host) -> None:
    original, image, state_dir = await host.saved()
    await original.stop(guest_grace_s=0)
    clone = await host.spawn(host.machine(image=image))
    await clone.restore(state_dir, resume=False)
    await asyncio.sleep(0.15)
    assert host.console(clone) == ""
    await clone.resume()
    await host.ticks(clone, 1)


async def test_the_console_of_a_successor_is_appended(host: Host) -> None:
    original, image, state_dir = await host.saved()
    history = host.console(original)
    await original.stop(guest_grace_s=0)
    successor = await host.spawn(replace(original.machine, ram=Ram(path=image, size_bytes=RAM_BYTES, private=True)), 1)
    await successor.restore(state_dir, resume=True)
    await host.until(lambda: len(host.console(successor)) > len(history) + 200)
    assert host.console(successor).startswith(history)
    counts = [count for _, count, _ in await host.ticks(successor)]
    assert counts == list(range(1, len(counts) + 1))  # not a line lost or repeated


async def test_a_clone_is_saved_in_place_and_its_own_clone_goes_on_from_there(host: Host) -> None:
    original, image, state_dir = await host.saved()
    await original.stop(guest_grace_s=0)
    parent = await host.spawn(host.machine(image=image))
    await parent.restore(state_dir, resume=True)
    await host.ticks(parent, 3)
    await parent.pause()
    second_state, second_image = host.directory / "second", host.directory / "second-image"
    second_state.mkdir()
    saved = await parent.save(SaveTarget(state_dir=second_state))
    assert sorted(path.name for path in second_state.iterdir()) == ["config.json", "state.json"]
    assert saved.in_place
    assert saved.changes is not None
    assert saved.changes.copy.stat().st_blocks * 512 < 2 * MIB  # what it dirtied, not what it has
    last = (await host.ticks(parent))[-1][1]
    await parent.resume()
    await host.ticks(parent, 6)  # it goes on while the image is completed, and its later writes are not in there
    await saved.complete(second_image)
    assert second_image.stat().st_size == RAM_BYTES
    assert not saved.changes.copy.exists()
    grandchild = await host.spawn(host.machine(image=second_image))
    await grandchild.restore(second_state, resume=True)
    assert (await host.ticks(grandchild))[0][1] in (last, last + 1, last + 2)
    check_restorable(saved.compatibility, (await host.driver.probe()).target)  # type: ignore[arg-type]
    (region,) = saved.compatibility.regions
    assert (region.guest_address, region.image_offset, region.size_bytes) == (0, 0, RAM_BYTES)
    assert saved.compatibility.devices[0].name == "mailbox"


async def test_a_clone_that_is_to_have_another_overlay_is_continued_by_a_successor(host: Host) -> None:
    disk = host.directory / "disk.raw"
    disk.write_bytes(bytes(MIB))
    original = await host.booted(disks=(Disk(path=disk, format="raw"),))
    await host.ticks(original, 2)
    await original.pause()
    first, second = host.directory / "first", host.directory / "second"
    first.mkdir()
    second.mkdir()
    await original.save(SaveTarget(state_dir=first))
    await original.stop(guest_grace_s=0)
    clone = await host.spawn(host.machine(image=original.machine.ram.path, disks=original.machine.disks))
    await clone.restore(first, resume=True)
    await host.ticks(clone, 2)
    with pytest.raises(VmmRefused, match="running"):  # and not a word of the file that is in the way
        await clone.save(SaveTarget(state_dir=second))
    await clone.pause()
    for leftover in second.iterdir():
        leftover.unlink()
    fresh = Disk(path=host.directory / "the caller makes it", format="raw")
    saved = await clone.save(SaveTarget(state_dir=second, overlays=(fresh,)))
    assert not saved.in_place
    await saved.complete(host.directory / "image")
    last = (await host.ticks(clone))[-1][1]
    await clone.stop(guest_grace_s=0)
    ram = Ram(path=host.directory / "image", size_bytes=RAM_BYTES, private=True)
    successor = await host.spawn(replace(clone.machine, ram=ram), 1)
    await successor.restore(second, resume=True)
    counts = [count for _, count, _ in await host.ticks(successor, last + 5)]
    assert counts == list(range(counts[0], counts[0] + len(counts)))


async def test_other_hardware_is_refused_before_the_vmm_sees_it(host: Host) -> None:
    _, image, state_dir = await host.saved()
    machine = host.machine(image=image)
    for other in (replace(machine, cpus=2), replace(machine, devices=()), replace(machine, disks=(
        Disk(path=Path("disk"), format="raw"),
    ))):  # fmt: skip
        clone = await host.driver.spawn(other, host.files(machine), incoming=True)
        with pytest.raises(IncompatibleSnapshot):
            await clone.restore(state_dir, resume=True)
        await clone.stop(guest_grace_s=0)


async def test_clones_share_the_backing_file_of_their_overlays(host: Host) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    base = host.directory / "base.qcow2"
    overlays = [host.directory / f"overlay-{number}.qcow2" for number in range(3)]
    await run_sync(qemu_img, "create", "-q", "-f", "qcow2", str(base), "4M")
    for overlay in overlays:
        await run_sync(qemu_img, "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(overlay))
    original = await host.booted(disks=(Disk(path=overlays[0], format="qcow2"),))
    await original.pause()
    state_dir = host.directory / "state"
    state_dir.mkdir()
    saved = await original.save(SaveTarget(state_dir=state_dir))
    assert [each.name for each in saved.compatibility.devices] == ["disk0", "mailbox"]
    for overlay in overlays[1:]:
        disks = (Disk(path=overlay, format="qcow2"),)
        clone = await host.spawn(host.machine(image=original.machine.ram.path, disks=disks))
        await clone.restore(state_dir, resume=True)
        await host.ticks(clone)


def qemu_img(*arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, timeout=30)


async def test_disks_come_through_a_restore_each_clone_with_its_own(host: Host) -> None:
    disk = host.directory / "disk.raw"
    disk.write_bytes(bytes(MIB))
    original = await host.booted(disks=(Disk(path=disk, format="raw"),))
    await original.pause()
    state_dir = host.directory / "state"
    state_dir.mkdir()
    await original.save(SaveTarget(state_dir=state_dir))
    own = host.directory / "own.raw"
    own.write_bytes(disk.read_bytes())
    clone = await host.spawn(host.machine(image=original.machine.ram.path, disks=(Disk(path=own, format="raw"),)))
    await clone.restore(state_dir, resume=True)  # the original still holds the lock on its disk
    await host.ticks(clone)


@pytest.mark.parametrize(
    ("args", "guest"), [("mode=off", "shutdown"), ("mode=panic", "panic"), ("mode=triple", "reset")]
)
async def test_how_the_guest_ended_is_known(host: Host, args: str, guest: str) -> None:
    vm = await host.booted(args)
    async with asyncio.timeout(20):
        ending = await vm.wait_ended()
    assert ending.guest == guest


async def test_a_guest_that_ignores_the_power_button_is_ended_all_the_same(host: Host) -> None:
    vm = await host.booted()
    await host.ticks(vm)
    ending = await vm.stop(guest_grace_s=0.2)
    assert (ending.code, ending.guest) == (0, None)


async def test_a_guest_that_stands_still_is_not_asked_to_power_off(host: Host) -> None:
    vm = await host.booted()
    await vm.pause()
    async with asyncio.timeout(5):
        assert (await vm.stop(guest_grace_s=60)).code == 0


async def test_a_flood_of_output_blocks_nobody(host: Host) -> None:
    vm = await host.booted("mode=flood")
    await host.until(lambda: host.console(vm).count("flood") > 1000)
    await vm.pause()
    await vm.resume()
    assert (await vm.stop(guest_grace_s=0)).signal is None


async def test_a_killed_vmm_is_noticed_at_once_by_everybody(host: Host) -> None:
    vm = await host.booted()
    waiting = [asyncio.create_task(vm.wait_ended()) for _ in range(3)]
    await host.ticks(vm)
    os.kill(vm.pid, signal.SIGKILL)
    async with asyncio.timeout(1):
        endings = await asyncio.gather(*waiting)
    assert {(ending.code, ending.signal) for ending in endings} == {(None, signal.SIGKILL)}
    with pytest.raises(VmmExited, match=r"was killed by SIGKILL while waiting for the reply to vm\.pause"):
        await vm.pause()


async def test_a_stopped_process_times_out_and_can_be_ended(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = await host.booted()
    os.kill(vm.pid, signal.SIGSTOP)
    monkeypatch.setattr("vmm.cloud_hypervisor.vm._QUIT_LIMIT_S", 0.1)
    monkeypatch.setattr("vmm.cloud_hypervisor.vm._TERMINATE_LIMIT_S", 0.1)
    with pytest.raises(VmmTimeout, match=r"no reply to vm\.pause"):
        await vm._call("vm.pause", limit_s=0.1)
    assert (await vm.stop(guest_grace_s=0)).signal == signal.SIGKILL


async def test_a_kernel_that_is_none_is_refused_and_the_ram_file_goes(host: Host) -> None:
    machine = replace(host.machine(), kernel=Path(__file__))
    vm = await host.spawn(machine)
    with pytest.raises(VmmRefused):
        await vm.boot()
    assert not machine.ram.path.exists()
    assert (await vm.stop(guest_grace_s=1)).code == 0


async def test_ram_that_exists_is_never_overwritten(host: Host) -> None:
    machine = host.machine()
    machine.ram.path.write_bytes(b"somebody's")
    with pytest.raises(InUse):
        await host.spawn(machine)
    assert machine.ram.path.read_bytes() == b"somebody's"


async def test_another_daemon_takes_over(host: Host) -> None:
    """The process is a child of this one, so let another object stand for the other daemon."""
    vm = await host.booted()
    successor = await CloudHypervisor().attach(vm.machine, host.files(vm.machine), vm.pid)
    await successor.pause()
    await successor.resume()
    assert (await successor.memory_use()).ram_private_bytes > 0
    ending = await successor.stop(guest_grace_s=0)
    assert ending.signal is None
    assert (await vm.wait_ended()).signal is None


async def test_a_cancelled_start_leaves_nothing(host: Host) -> None:
    vm = await host.spawn(host.machine())
    task = asyncio.create_task(vm.boot())
    await asyncio.sleep(0.002)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await vm.stop(guest_grace_s=0)
    assert not vm.machine.ram.path.exists()


async def test_a_long_path_is_no_obstacle(host: Host) -> None:
    machine = host.machine()
    directory = machine.devices[0].path.parent / ("d" * 120)
    directory.mkdir()
    files = VmmFiles(directory=directory, console=directory / "console", log=directory / "log")
    vm = await host.driver.spawn(machine, files, incoming=False)
    await vm.boot()
    await vm.stop(guest_grace_s=0)
    assert sorted(path.name for path in directory.iterdir()) == ["console", "log"]


async def test_a_vanished_process_cannot_be_attached_to(host: Host) -> None:
    machine = host.machine()
    gone = VmmProcess.spawn(["true"], stderr=host.files(machine).log)
    await gone.wait()
    with pytest.raises(VmmExited):
        await host.driver.attach(machine, host.files(machine), gone.pid)
