"""Named steps at which a daemon can be made to die, so that what the next one finds there is tried and not imagined.

``reach(name)`` stands behind each step that leaves something half done. It does nothing, unless ``OVMS_DIE_AT`` in the
environment of the daemon names the step: then the process kills itself there, as ``kill -9`` would at that instruction.
``OVMS_DIE_AT=start.journal:3`` dies when it comes there for the third time. tests/crash and scripts/crash-rounds use
it.
"""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "OVMS_DIE_AT"

START: Final = (
    "start.directory",
    "start.journal",
    "start.image",
    "start.files",
    "start.spawned",
    "start.recorded",
    "start.launched",
    "start.running",
)
CLAIM: Final = ("claim.taken", "claim.journal", "claim.resumed")
STOP: Final = ("stop.journal", "stop.ended", "stop.undone", "stop.final")
SNAPSHOT: Final = (
    "snapshot.begun",
    "snapshot.prepared",
    "snapshot.paused",
    "snapshot.saved",
    "snapshot.restored",
    "snapshot.named",
    "snapshot.resumed",
    "snapshot.recorded",
    "snapshot.captured",
    "snapshot.encoded",
    "snapshot.stored",
    "snapshot.resident",
)
REMOVE: Final = ("remove.directory", "remove.claim")
PULL: Final = ("pull.documents", "pull.blob", "pull.listed")
PARK: Final = ("park.order", "park.parked")
LOAD: Final = ("load.decoded", "load.published")
PRUNE: Final = ("prune.unlisted", "prune.buried", "prune.destroyed")

NAMES: Final = frozenset((*START, *CLAIM, *STOP, *SNAPSHOT, *REMOVE, *PULL, *PARK, *LOAD, *PRUNE))


def _armed() -> tuple[str, int]:
    name, _, count = os.environ.get(VARIABLE, "").partition(":")
    return (name, int(count or 1)) if name in NAMES else ("", 0)


_name, _left = _armed()


def reach(name: str) -> None:
    """This step is done. Dies here if that was asked for."""
    if name == _name:
        _die()


def _die() -> None:
    global _left
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
