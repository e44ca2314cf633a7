"""The RAM of a clone at one moment: the pages that it changed, to be completed from its image while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spec.errors import InUse
from vmm.driver import Ram
from vmm.pagemap import Extent, capture_own_pages, complete_image


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
