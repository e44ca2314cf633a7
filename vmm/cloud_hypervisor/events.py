"""What ``--event-monitor`` wrote: JSON objects one after another, pretty-printed, perhaps cut off at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

_TAIL_BYTES = 64 * 1024
"""A guest can cause events as fast as it likes; how it ended is told last."""


def parse_events(text: str) -> Iterator[tuple[str, str]]:
    """The (source, event) of each complete object; whatever else there is, is skipped to the next object."""
    decoder = json.JSONDecoder()
    position = text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            if isinstance(value.get("source"), str) and isinstance(value.get("event"), str):
                yield value["source"], value["event"]
        position = text.find("\n{", end - 1) + 1 or -1  # objects begin at the start of a line


def guest_ending(path: Path) -> Literal["shutdown", "panic"] | None:
    """How the guest ended by the events in a file, None if it did not (or nothing was written). Blocks.

    "shutdown" is also what a VMM writes that was told to quit: the caller knows whether it was.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            events = set(parse_events(file.read(_TAIL_BYTES).decode(errors="replace")))
    except OSError:
        return None
    if ("guest", "panic") in events:
        return "panic"
    return "shutdown" if ("vm", "shutdown") in events else None
