"""Where a daemon keeps what: the one place that knows the names of files under root, run dir and image dir.

::

    <run_dir>/daemon.lock
    <run_dir>/instances/<id>/   journal.json  console.log  console.index  vmm.log  *.sock      until removed
    <image_dir>/instances/<id>/ ram  ram-<generation>  ivshmem-<name>                          while it lives
    <root>/daemon.lock
    <root>/instances/<id>/      disk-0.qcow2  disk-0.<generation>.qcow2                        while it lives
    <root>/disks/<name>/        disk.json  disk-0.qcow2  …                                     persistent disks
    <root>/warm.json            which artifacts have clones parked
    <root>/storing/<uuid>/      overlays of a snapshot until they are in the store

RAM, its snapshots and the images must be on one file system: they are hard links of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovms_supervisor.config import Settings


@dataclass(frozen=True, slots=True)
class InstancePaths:
    """The directories of one instance and the names in them."""

    directory: Path
    """On the run dir: what remains of an instance until it is removed."""
    memory: Path
    """On the tmpfs: its RAM and shared-memory devices."""
    disks: Path
    """On the root: its ephemeral overlays."""

    @property
    def journal(self) -> Path:
        """The record from which a later daemon re-adopts it."""
        return self.directory / "journal.json"

    @property
    def console(self) -> Path:
        """What the guest wrote to its serial port."""
        return self.directory / "console.log"

    @property
    def console_index(self) -> Path:
        """When each line of the console came."""
        return self.directory / "console.index"

    @property
    def vmm_log(self) -> Path:
        """The VMM's own messages."""
        return self.directory / "vmm.log"

    @property
    def kept(self) -> frozenset[Path]:
        """What stays in the directory when the instance has ended."""
        return frozenset({self.journal, self.console, self.console_index, self.vmm_log})

    def ram(self, generation: int) -> Path:
        """Guest RAM of one generation: the first owns its file, later ones map a frozen one."""
        return self.memory / ("ram" if generation == 0 else f"ram-{generation}")

    def shared_memory(self, device: str) -> Path:
        """The file behind an ivshmem device."""
        return self.memory / f"ivshmem-{device}"


def overlay_name(generation: int) -> str:
    """The overlay that a generation writes to; all older ones are frozen below it."""
    return "disk-0.qcow2" if generation == 0 else f"disk-0.{generation}.qcow2"


@dataclass(frozen=True, slots=True)
class Layout:
    """The directories of one daemon."""

    root: Path
    run_dir: Path
    image_dir: Path

    @classmethod
    def of(cls, settings: Settings) -> Layout:
        """The layout that the settings describe."""
        return cls(settings.root, settings.run_dir, settings.image_dir)

    @property
    def locks(self) -> tuple[Path, Path]:
        """Held by the one daemon that may use these directories."""
        return self.run_dir / "daemon.lock", self.root / "daemon.lock"

    @property
    def instances(self) -> Path:
        """One directory per instance."""
        return self.run_dir / "instances"

    @property
    def instance_memory(self) -> Path:
        """One directory per live instance, on the tmpfs."""
        return self.image_dir / "instances"

    @property
    def instance_disks(self) -> Path:
        """One directory per live instance with an ephemeral disk."""
        return self.root / "instances"

    @property
    def storing(self) -> Path:
        """Overlays of snapshots that are on their way into the store."""
        return self.root / "storing"

    @property
    def warm_orders(self) -> Path:
        """Which artifacts have clones parked, and how many."""
        return self.root / "warm.json"

    def persistent_disk(self, name: str) -> Path:
        """The directory of the disk that is kept under an instance's name."""
        return self.root / "disks" / name

    def of_instance(self, instance_id: str) -> InstancePaths:
        """The paths of one instance."""
        return InstancePaths(
            self.instances / instance_id, self.instance_memory / instance_id, self.instance_disks / instance_id
        )
