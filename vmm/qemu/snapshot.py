"""What a save leaves behind: the device state, and for a machine with private RAM the pages that it changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from anyio.to_thread import run_sync

from spec.compatibility import Compatibility
from spec.decoding import NotDecodable, from_json
from spec.errors import CorruptRamsnap, FileMissing, IncompatibleSnapshot
from vmm.changed_pages import ChangedPages
from vmm.driver import Machine
from vmm.qemu.board import hardware

STATE_FILE = "devices"
"""In the state directory: QEMU's device state, without RAM."""
BOARD_FILE = "board.json"
"""Beside it: the hardware it belongs to. QEMU itself notices a device too few, but none too many, nor a vCPU."""

_MAX_BOARD_BYTES = 64 * 1024


def write_board(machine: Machine, state_dir: Path) -> None:
    """Record the hardware with a snapshot. Blocks."""
    (state_dir / BOARD_FILE).write_bytes(msgspec.json.encode(hardware(machine)))


def open_state(machine: Machine, state_dir: Path) -> int:
    """A descriptor of device state that is fit for the machine. Blocks.

    Raises IncompatibleSnapshot, CorruptRamsnap, FileMissing.
    """
    try:
        with (state_dir / BOARD_FILE).open("rb") as file:
            then = from_json(file.read(_MAX_BOARD_BYTES), dict[str, Any])
        fd = os.open(state_dir / STATE_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FileMissing(f"the device state in {state_dir} can't be read: {error}", path=str(state_dir)) from error
    except NotDecodable as error:
        raise CorruptRamsnap(f"the snapshot's {BOARD_FILE} can't be read: {error}") from error
    now = msgspec.to_builtins(hardware(machine))
    for part in sorted(now.keys() | then.keys()):
        if now.get(part) != then.get(part):
            os.close(fd)
            raise IncompatibleSnapshot(
                f"{part}: the snapshot was made with {then.get(part)!r:.200}, this machine has {now.get(part)!r:.200}",
                property=part,
            )
    return fd


@dataclass(frozen=True, slots=True)
class QemuSaved:
    """See :class:`vmm.driver.Saved`. ``changes`` are there exactly for a machine with private RAM."""

    compatibility: Compatibility
    changes: ChangedPages | None = None

    @property
    def in_place(self) -> bool:
        """A machine with private RAM goes on; one that writes to the file which is to be the image must not."""
        return self.changes is not None

    async def complete(self, image: Path) -> None:
        """Make the image of changed pages and parent image."""
        if self.changes is not None:
            await run_sync(self.changes.complete, image)
