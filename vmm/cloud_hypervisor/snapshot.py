"""The files of a snapshot: what vm.snapshot writes is made fit to be shared, and a restore gets a directory of its own.

All functions here block (files of some ten kilobytes on tmpfs).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from spec.compatibility import MemoryRegion
from spec.decoding import NotDecodable, from_json
from spec.errors import CorruptRamsnap, IncompatibleSnapshot, VmmGarbage, VmmRefused
from vmm.cloud_hypervisor.config import hardware, vm_config
from vmm.driver import Machine

CONFIG_FILE = "config.json"
STATE_FILE = "state.json"
MEMORY_FILE = "memory-ranges"
"""The names that vm.snapshot writes and vm.restore reads."""

_MAX_CONFIG_BYTES = 1024 * 1024


def refuse_ram_copy(state_dir: Path) -> None:
    """Put a file where vm.snapshot would write the whole of a private RAM, in seconds per GiB of pause.

    It opens that file as a new one, after it has written the device state: so it fails in the end, and what we want is
    there. Should a release overwrite the file instead, that costs time and is harmless.
    """
    (state_dir / MEMORY_FILE).touch(exist_ok=False)


def tidy(machine: Machine, state_dir: Path) -> list[MemoryRegion]:
    """Make a fresh snapshot one that any clone can be restored from; return where guest RAM lies in the RAM file.

    Host paths leave ``config.json``, and ``state.json`` forgets that a private RAM was to be copied, else a restore
    would look for the copy. Raises VmmGarbage (the device state is not all there), VmmRefused.
    """
    (state_dir / CONFIG_FILE).write_bytes(msgspec.json.encode(hardware(machine)))
    copied = state_dir / MEMORY_FILE
    if copied.exists():
        copied.unlink()
        if not machine.ram.private:
            raise VmmRefused("vm.snapshot copied guest RAM, although it is in a shared file that is to be the image")
    state_file = state_dir / STATE_FILE
    try:
        state = from_json(state_file.read_bytes(), dict[str, Any])
        holder = state["snapshots"]["memory-manager"]["snapshot_data"]
        memory = from_json(holder["state"], dict[str, Any])  # a document within the document
        regions = [
            MemoryRegion(
                name=f"ram{number}",
                guest_address=mapping["gpa"],
                image_offset=mapping["file_offset"],
                size_bytes=mapping["size"],
            )
            for number, mapping in enumerate(memory["guest_ram_mappings"])
        ]
        if memory["memory_ranges"]["data"]:
            memory["memory_ranges"]["data"] = []
            holder["state"] = msgspec.json.encode(memory).decode()
            state_file.write_bytes(msgspec.json.encode(state))
    except (OSError, NotDecodable, KeyError, TypeError) as error:
        raise VmmGarbage(f"vm.snapshot wrote a {STATE_FILE} that can't be read: {error!r}") from error
    return regions


def prepare_restore(machine: Machine, state_dir: Path, directory: Path) -> None:
    """Make the directory that vm.restore reads: a configuration for this clone, and the shared device state.

    Raises IncompatibleSnapshot, CorruptRamsnap.
    """
    check_hardware(machine, state_dir / CONFIG_FILE)
    directory.mkdir(mode=0o755, parents=True)
    (directory / CONFIG_FILE).write_bytes(msgspec.json.encode(vm_config(machine)))
    # Not a hard link: instances and images may be on file systems of their own.
    (directory / STATE_FILE).symlink_to((state_dir / STATE_FILE).absolute())


def check_hardware(machine: Machine, recorded: Path) -> None:
    """Compare the hardware that a snapshot recorded with the machine's. Raises IncompatibleSnapshot, CorruptRamsnap."""
    try:
        with recorded.open("rb") as file:
            then = from_json(file.read(_MAX_CONFIG_BYTES), dict[str, Any])
    except (OSError, NotDecodable) as error:
        raise CorruptRamsnap(f"the snapshot's {recorded.name} can't be read: {error}") from error
    now = hardware(machine)
    for part in sorted(now.keys() | then.keys()):
        if now.get(part) != then.get(part):
            before, here = (msgspec.json.encode(side.get(part)).decode()[:200] for side in (then, now))
            raise IncompatibleSnapshot(
                f"{part}: the snapshot was made with {before}, this machine has {here}",
                property=part,
                snapshot=before,
                machine=here,
            )
