"""The driver protocol: what the supervisor may ask of a VMM, and what it may rely on.

A :class:`Driver` knows one kind of VMM; a :class:`Vm` is one process of it. The order of calls on a Vm::

    spawn(incoming=False) → boot ─┐
                                  ├→ running ⇄ paused → save → (resume if in place, else stop) …→ stop
    spawn(incoming=True) → restore┘

Every method raises errors of ``spec.errors`` only (VmmExited, VmmTimeout, VmmRefused, VmmGarbage, …), has a time
limit of its own, and can be cancelled; a Vm whose boot or restore raised must still be given to :meth:`Vm.stop`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

from spec.compatibility import Compatibility, RestoreTarget
from vmm.memory_counters import MemoryCounters

if TYPE_CHECKING:
    from vmm.changed_pages import ChangedPages

RuntimeName = Literal["qemu", "cloud-hypervisor"]

DEEPEST_DISK: Final[Mapping[str, int]] = {"cloud-hypervisor": 10}
"""By runtime: how many images one disk may be made of, its overlay included; without an entry no limit is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ram:
    """Guest RAM as a tmpfs file.

    ``private=False``: the machine owns the file and writes to it (``MAP_SHARED``; a cold boot).
    ``private=True``: the file is a read-only image, mapped copy-on-write (``MAP_PRIVATE``; a clone).
    """

    path: Path
    size_bytes: int
    private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk image; a qcow2 may have a backing chain, which the driver must allow and never write to."""

    path: Path
    format: Literal["qcow2", "raw"]
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemory:
    """An ivshmem device: a file of a power-of-two size, visible to the guest as PCI BAR 2."""

    name: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a machine is made of. A clone must be given the same as its original, its own paths aside."""

    cpus: int
    ram: Ram
    kernel: Path
    initrd: Path | None
    kernel_args: str
    disks: tuple[Disk, ...] = ()
    devices: tuple[SharedMemory, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """That a VMM is to be confined (RFC §6), and what its owner knows of it; the rest follows from the machine."""

    uid: int | None
    """A user of its own, where the daemon is root; None: the daemon's, in a user namespace."""
    read_only: tuple[Path, ...] = ()
    """What it may read beside the files of its machine: the directory of its image."""
    writable: tuple[Path, ...] = ()
    """Directories in which it may have files: where its state is saved."""
    strict: bool = False
    """A layer that cannot be had is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmmFiles:
    """Where one VMM process puts its files.

    ``directory`` is the instance's own (sockets are made in it; ``generation`` keeps the names of a successor apart);
    ``console`` receives the guest's serial output, appended; ``log`` the VMM's own messages, appended.
    """

    directory: Path
    console: Path
    log: Path
    generation: int = 0
    confinement: Confinement | None = None
    """None: the process runs as the daemon does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limitation:
    """Why a runtime is not usable, or something it can't do here."""

    code: str
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReport:
    """The answer of :meth:`Driver.probe`. ``target`` is None exactly when the binary or its version is unknown."""

    name: RuntimeName
    usable: bool
    binary: Path | None
    target: RestoreTarget | None
    """What a snapshot would be restored on: version, machine type, accelerator, CPU."""
    features: frozenset[str] = frozenset()
    """Of ``ivshmem``, ``restore``, ``snapshot``, ``snapshot-in-place`` (of clones, on new overlays), and
    ``snapshot-in-place-same-disk`` (of clones that are given no new overlay, and write on to the disk they have)."""
    limitations: tuple[Limitation, ...] = ()
    usable_if_named: bool = False
    """It would not be chosen, but an explicit request is honoured: its limitations hurt some guests, not all."""

    @property
    def runnable(self) -> bool:
        """Whether a start that names this runtime is to be tried; ``usable`` is about choosing it by ourselves."""
        return self.usable or self.usable_if_named


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a VMM process ended; ``guest`` is what the VMM said about the guest before it ended, if it did."""

    code: int | None
    signal: int | None
    guest: Literal["shutdown", "panic", "reset"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Resident guest and VMM memory by the kernel's count (``/proc/PID/smaps``), in bytes."""

    image_shared_bytes: int
    """Clean pages of the RAM file that are mapped: shared with the image and every other clone."""
    ram_private_bytes: int
    """Pages of the RAM mapping that only this process has (copied on write, or all of a cold-booted machine's)."""
    process_private_bytes: int
    """Everything that only this process has, RAM included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveTarget:
    """Where :meth:`Vm.save` puts the state: an empty directory on the same tmpfs as the RAM files."""

    state_dir: Path
    overlays: tuple[Disk, ...] = field(default=())
    """A fresh overlay for each writable disk, in order, backed by the present one. Made by the caller; none if the
    driver can only go on on the same disk, of which the caller takes a copy before it lets the machine go on."""
    image: Path | None = None
    """For a machine whose RAM is private: a copy of its image, which the changed pages make the machine's RAM."""


class Saved(Protocol):
    """A machine's state at one point in time. The machine stands still until the caller decides how it goes on."""

    @property
    def in_place(self) -> bool:
        """True: the process now writes to the new overlays and may be resumed; :meth:`complete` may run meanwhile.
        False: the process must not run again unless the snapshot is given up; a successor continues from it."""

    @property
    def compatibility(self) -> Compatibility:
        """What the header of the snapshot says of the machine."""

    @property
    def changes(self) -> ChangedPages | None:
        """The pages that a machine with private RAM has changed; None for one whose RAM file is its own."""

    async def complete(self, image: Path) -> None:
        """For a machine whose RAM is private: write its whole RAM to the file ``image`` (which must not exist).

        For one whose RAM file is its own (``private=False``) nothing is to be done: that file is the image.
        """


class Vm(Protocol):
    """One VMM process."""

    @property
    def pid(self) -> int:
        """The process id; owned by this object until :meth:`wait_ended` returned."""

    @property
    def machine(self) -> Machine:
        """What it runs, with the disks it has now."""

    @property
    def resumed_at(self) -> float | None:
        """When the vCPUs were let go the last time, by the monotonic clock; None: not by this object."""

    async def boot(self) -> None:
        """Cold boot; returns when vCPUs run."""

    async def restore(self, state_dir: Path, *, resume: bool) -> None:
        """Continue from saved device state, RAM mapped copy-on-write from ``machine.ram.path``.

        Proves from ``/proc/PID/smaps`` that RAM is a private mapping of that file and was not copied; raises
        MemoryNotShared otherwise. ``state_dir`` may be shared by many clones and is not written to.
        """

    async def pause(self) -> None:
        """Stop the vCPUs."""

    async def resume(self) -> None:
        """Let the vCPUs go on."""

    async def expect_resume(self) -> None:
        """Get ready for a resume that may be wanted at any moment and must take no time. Raises nothing."""

    async def save(self, target: SaveTarget) -> Saved:
        """Write the device state of a paused machine."""

    @property
    def unconfined(self) -> tuple[tuple[str, str], ...]:
        """Layers of its confinement that could not be had when it was started, and why."""

    async def memory_use(self) -> MemoryUse:
        """Read the kernel's figures (in a thread: smaps of a large process takes milliseconds)."""

    def memory_counters(self) -> MemoryCounters:
        """What the kernel counts as it goes along: cheap enough to be asked at every status. Raises VmmExited."""

    async def stop(self, *, guest_grace_s: float) -> Ending:
        """End the process: ask the guest to power off and wait ``guest_grace_s`` (0: don't ask), then the VMM's own
        quit, then SIGTERM, then SIGKILL, each with a limit; reap; remove the process's sockets. Never raises
        for a VMM that misbehaves; idempotent; the reap is shielded from cancellation."""

    async def wait_ended(self) -> Ending:
        """Return when the process is gone, by whatever cause; may be awaited by several tasks."""

    async def detach(self) -> None:
        """Let go of a process that is to go on without us: close our connections and descriptors, leave its files.

        The last call on this object; nobody may be waiting for its end any more. Never raises.
        """


class Driver(Protocol):
    """One kind of VMM."""

    name: RuntimeName

    async def probe(self) -> RuntimeReport:
        """What this host and binary can do. Never raises; starts at most short-lived processes; cached by callers."""

    async def spawn(self, machine: Machine, files: VmmFiles, *, incoming: bool) -> Vm:
        """Start a process and wait until it takes commands. Raises MissingTool, VmmExited, VmmTimeout, VmmGarbage."""

    async def attach(self, machine: Machine, files: VmmFiles, pid: int) -> Vm:
        """Take over a process that an earlier daemon spawned. The caller has checked that ``pid`` is it."""
