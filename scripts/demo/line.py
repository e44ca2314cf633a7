"""What the demo's service prints once a second."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(
    r"demo nonce=(?P<nonce>[0-9a-f]{16}) counter=(?P<counter>\d+) id=(?P<id>\d+|-) "
    r"disk=(?P<disk_id>\d+|-):(?P<disk_counter>\d+) uptime=(?P<uptime>\d+\.\d+)\s*"
)


@dataclass(frozen=True, slots=True)
class DemoLine:
    """One line: see scripts/demo/guest/service for the meaning of each field."""

    nonce: str
    counter: int
    id: int | None
    disk: tuple[int | None, int]
    """Id and counter as read back from the disk."""
    uptime_s: float

    @property
    def disk_is_its_own(self) -> bool:
        """Whether the disk gave back what this machine had just written."""
        return self.disk == (self.id, self.counter)


def parse(line: str) -> DemoLine | None:
    """The line's fields, or None if it is another line."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    return DemoLine(
        nonce=match["nonce"],
        counter=int(match["counter"]),
        id=_number(match["id"]),
        disk=(_number(match["disk_id"]), int(match["disk_counter"])),
        uptime_s=float(match["uptime"]),
    )


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)
