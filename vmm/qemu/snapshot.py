"""What a save leaves behind: the device state, and for a machine with private RAM the pages that it changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anyio.to_thread import run_sync

from spec.compatibility import Compatibility
from spec.errors import InUse
from vmm.driver import Ram
from vmm.pagemap import Extent, capture_own_pages, complete_image

STATE_FILE = "devices"
"""In the state directory: QEMU's device state, without RAM."""


@dataclass(frozen=True, slots=True)
class ChangedPages:
    """The pages of a clone's RAM that differ from its image, in a sparse file that is to become the new image."""

    parent: Path
    copy: Path
    own: list[Extent]

    def complete(self, image: Path) -> None:
        """Fill the rest in from the parent image, and show the file as ``image`` then. Blocks; raises InUse, NoSpace.

        The file is gone from its old place afterwards, also if this failed.
        """
        try:
            complete_image(self.parent, self.own, self.copy)
            image.hardlink_to(self.copy)
        except FileExistsError as error:
            raise InUse(f"{image} exists already") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Give the memory back."""
        self.copy.unlink(missing_ok=True)


def capture(pid: int, ram: Ram, state_dir: Path) -> ChangedPages:
    """Copy the changed pages of a machine that stands still to a file beside ``state_dir``. Blocks."""
    copy = state_dir.with_name(f"{state_dir.name}.changed-pages")
    return ChangedPages(ram.path, copy, capture_own_pages(pid, ram.path, copy))


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
