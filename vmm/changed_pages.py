"""The RAM of a clone at one moment: the pages that it changed, to be completed from its image while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spec.errors import InUse
from vmm.driver import Ram, SaveTarget
from vmm.pagemap import Extent, capture_own_pages, complete_image


@dataclass(frozen=True, slots=True)
class ChangedPages:
    """The pages of a clone's RAM that differ from its image, each at its place in ``copy``."""

    parent: Path
    copy: Path
    """A sparse file; if ``whole``, all of the RAM."""
    own: list[Extent]
    whole: bool = False

    def complete(self, image: Path) -> None:
        """Fill the rest in from the parent image, and show the file as ``image`` then. Blocks; raises InUse, NoSpace.

        The file is gone from its old place afterwards, also if this failed, unless it was whole.
        """
        try:
            if not self.whole:
                complete_image(self.parent, self.own, self.copy)
            image.hardlink_to(self.copy)
        except FileExistsError as error:
            raise InUse(f"{image} exists already") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Give the memory back, unless the file is the caller's."""
        if not self.whole:
            self.copy.unlink(missing_ok=True)


def capture(pid: int, ram: Ram, target: SaveTarget) -> ChangedPages:
    """Copy the changed pages of a machine that stands still over ``target.image``, or to a new file. Blocks."""
    if target.image is not None:
        own = capture_own_pages(pid, ram.path, target.image, over_image=True)
        return ChangedPages(ram.path, target.image, own, whole=True)
    copy = target.state_dir.with_name(f"{target.state_dir.name}.changed-pages")
    return ChangedPages(ram.path, copy, capture_own_pages(pid, ram.path, copy))
