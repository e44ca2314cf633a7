"""What a check finds."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from ovms_supervisor.config import Settings


class Level(StrEnum):
    """``fail``: no machine can run. ``warn``: machines run, with less than the host could give. ``ok``: fine."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report."""

    check: str
    level: Level
    figure: str
    """What was seen: a number, a version, a path."""
    why: str = ""
    """What it means; empty where all is well and the figure says it."""
    remedy: str = ""


Check = Callable[["Settings"], Finding]
"""Never raises for what a host may lack; may block for milliseconds."""


def ok(check: str, figure: str, why: str = "") -> Finding:
    """All is well."""
    return Finding(check=check, level=Level.OK, figure=figure, why=why)


def warn(check: str, figure: str, why: str, remedy: str = "") -> Finding:
    """Machines run, with less than the host could give."""
    return Finding(check=check, level=Level.WARN, figure=figure, why=why, remedy=remedy)


def fail(check: str, figure: str, why: str, remedy: str) -> Finding:
    """No machine can run."""
    return Finding(check=check, level=Level.FAIL, figure=figure, why=why, remedy=remedy)


def read_text(path: str) -> str | None:
    """A file of /proc or /sys without its line end; None if it can't be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def read_number(path: str) -> int | None:
    """A file of /proc or /sys that holds one number; None if it doesn't."""
    text = read_text(path)
    return int(text) if text is not None and text.isdigit() else None
