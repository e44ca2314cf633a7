"""How far a snapshot is, as events: ``snapshot.captured``, ``snapshot.progress`` now and then, ``snapshot.created``."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from ovms_supervisor.instance.capture import Captured
from ovms_supervisor.instance.instance import Instance
from spec.digest import Digest
from spec.reference import Reference

_EVERY_S: Final = 0.5


class SnapshotEvents:
    """The events of one snapshot of one instance."""

    def __init__(self, instance: Instance, reference: Reference) -> None:
        self._instance = instance
        self._reference = str(reference)
        self._loop = asyncio.get_running_loop()
        self._told_s = float("-inf")

    def captured(self, captured: Captured) -> None:
        """The machine goes on; what follows does not touch it."""
        parent = captured.layering.changes.parent if captured.layering else None
        self._tell("captured", pause_ms=captured.pause_ms, parent=parent)

    def encoded(self, done_bytes: int, of_bytes: int) -> None:
        """So much of the RAM has been looked at and compressed. For any one thread."""
        now = time.monotonic()
        if now - self._told_s >= _EVERY_S:
            self._told_s = now
            self._loop.call_soon_threadsafe(self._progress, done_bytes, of_bytes)

    def created(self, digest: Digest, pause_ms: float) -> None:
        """It is stored and has its name."""
        self._tell("created", digest=digest, pause_ms=pause_ms)

    def _progress(self, done_bytes: int, of_bytes: int) -> None:
        self._tell("progress", done_bytes=done_bytes, of_bytes=of_bytes)

    def _tell(self, what: str, **detail: Any) -> None:
        instance = self._instance
        instance.host.events.publish(
            f"snapshot.{what}", instance_id=instance.id, name=instance.name, reference=self._reference, **detail
        )
