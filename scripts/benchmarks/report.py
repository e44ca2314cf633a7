"""What was measured, for a person and for a program."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.benchmarks.measure import Case, Sample


@dataclass(frozen=True, slots=True)
class Measured:
    """A row and what came of it; ``trouble`` says why there are no (more) cases."""

    name: str
    title: str
    cases: list[Case]
    trouble: str | None = None


_HEAD = ("", "p50", "p95", "p99", "baseline p50", "p95", "p99", "ratio", "aim", "")


def table(rows: list[Measured]) -> str:
    """A table of all cases, with what stops each clock below."""
    lines: list[tuple[str, ...]] = [_HEAD]
    notes: list[str] = []
    for row in rows:
        for case in row.cases:
            lines.append(_line(case))
            what = f"{case.what}: stops at {case.stop_line}"
            notes.append(
                "; ".join([what, *([f"baseline {case.baseline_is}"] if case.baseline_is else []), *case.notes])
            )
        if row.trouble:
            notes.append(f"{row.title}: {row.trouble}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", *notes])


def document(rows: list[Measured], *, quick: bool, event_loop: str) -> dict[str, Any]:
    """The same for a program, with every value that was taken."""
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "event_loop": event_loop,
        "host": {
            "cpus": os.cpu_count(),
            "cpu": _cpu_model(),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load": os.getloadavg(),
        },
        "rows": [
            {
                "name": row.name,
                "title": row.title,
                "trouble": row.trouble,
                "cases": [_case(case) for case in row.cases],
            }
            for row in rows
        ],
    }


def _line(case: Case) -> tuple[str, ...]:
    base = _cells(case.baseline, "") if case.baseline else ("", "", "")
    aim = ""
    if case.at_most is not None:
        aim = f"≤ {case.at_most:g} ×"
    elif case.at_most_value is not None:
        aim = f"≤ {case.at_most_value:g} {case.unit}"
    verdict = {True: "met", False: "missed", None: ""}[case.met]
    ratio = f"{case.ratio:.2f} ×" if case.ratio is not None else ""
    return (case.what, *_cells(case.ours, case.unit), *base, ratio, aim, verdict)


def _cells(sample: Sample, unit: str) -> tuple[str, str, str]:
    p50, p95, p99 = (_figure(each) for each in (sample.p50, sample.p95, sample.p99))
    return f"{p50} {unit}".rstrip(), p95, p99


def _figure(value: float) -> str:
    return (
        f"{value:.3f}"
        if value < 1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
        if value < 100
        else f"{value:.0f}"
    )


def _case(case: Case) -> dict[str, Any]:
    return {
        "what": case.what,
        "stop_line": case.stop_line,
        "unit": case.unit,
        "ours": _sample(case.ours),
        "baseline": _sample(case.baseline) if case.baseline else None,
        "baseline_is": case.baseline_is,
        "ratio": case.ratio,
        "aim": {"times_baseline": case.at_most, "value": case.at_most_value},
        "met": case.met,
        "notes": list(case.notes),
        **case.figures,
    }


def _sample(sample: Sample) -> dict[str, Any]:
    values = sample.values if len(sample.values) <= 1000 else []
    return {"n": len(sample.values), "p50": sample.p50, "p95": sample.p95, "p99": sample.p99, "values": values}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"
