"""The table at the end of the quickstart."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from scripts.demo.tour import Figures
from spec.sizes import format_size


def table(figures: list[Figures]) -> str:
    """What was measured, a column per runtime; each row says where its clock stops."""
    rows = [("", *map(_runtime, figures)), *((name, *map(value, figures)) for name, value in _ROWS)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _runtime(figures: Figures) -> str:
    runtime = figures.original.runtime
    return f"{runtime.name} {runtime.version} ({runtime.accelerator})" if runtime else "?"


def _clone_times(figures: Figures) -> list[float]:
    return [each.metrics.start.total_ms for each in figures.clones if each.metrics.start]


def _memory(figures: Figures, what: str) -> str:
    return _sizes([getattr(each.metrics.memory, f"{what}_bytes") for each in figures.clones if each.metrics.memory])


def _sizes(values: list[int]) -> str:
    return f"p50 {format_size(int(statistics.median(values)))}, max {format_size(max(values))}"


def _locked(figures: Figures) -> str:
    locked = min(each.metrics.memory.locked_bytes for each in figures.clones if each.metrics.memory)
    if locked:
        return format_size(locked)
    reasons = sorted(
        {each.detail for clone in figures.clones for each in clone.degraded if each.code.startswith("mlock")}
    )
    return f"no: {'; '.join(reasons) or 'the artifact does not ask for it'}"


def _times(values: list[float]) -> str:
    return f"p50 {statistics.median(values):.1f} ms, max {max(values):.1f} (of {len(values)})"


_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("cold boot, until the VMM runs", lambda each: f"{each.boot_running_ms:.0f} ms"),
    ("cold boot, until the service's first line", lambda each: f"{each.boot_first_line_ms:.0f} ms"),
    ("snapshot, guest paused", lambda each: f"{each.snapshot.pause_ms:.1f} ms"),
    ("snapshot, until stored as an artifact", lambda each: f"{each.snapshot_ms:.0f} ms"),
    ("start of a clone, until its guest goes on", lambda each: _times(_clone_times(each))),
    ("guest memory", lambda each: format_size(each.clones[0].memory_bytes)),
    ("  shared with the image, per clone", lambda each: _memory(each, "shared")),
    ("  changed by the guest, per clone", lambda each: _sizes(each.changed_bytes)),
    ("  private to the VMM process, that included", lambda each: _memory(each, "private")),
    ("  image locked in memory", _locked),
)
