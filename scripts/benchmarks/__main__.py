"""Measure the fast path. Run by scripts/bench."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import msgspec

from scripts.benchmarks.host import Host, host
from scripts.benchmarks.report import Measured, document, table
from scripts.benchmarks.row import NotHere, Row
from scripts.benchmarks.rows import ALL


def main() -> int:
    """Exit code 1 if a row broke; a missed aim is a result and no failure."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples: some three minutes in all")
    parser.add_argument("--only", action="append", metavar="ROW", help="this row alone; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there, too")
    parser.add_argument("--runtime", action="append", help="only this runtime; may be repeated")
    loops = ["asyncio", *(["uvloop"] if find_spec("uvloop") else [])]
    parser.add_argument(
        "--event-loop", choices=loops, default=loops[-1], help="of the daemon and the servers beside it (%(default)s)"
    )
    parser.add_argument(
        "--isolation",
        choices=["off", "auto", "required"],
        default="off",
        help="whether the daemon confines VMMs; the scripts beside it don't (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.list:
        for row in ALL:
            print(f"{row.name:12} {row.title}")
        return 0
    unknown = set(arguments.only or ()) - {row.name for row in ALL}
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in ALL)}")
    rows = [row for row in ALL if not arguments.only or row.name in arguments.only]
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that everything is given back
    with host(quick=arguments.quick, event_loop=arguments.event_loop, isolation=arguments.isolation) as made:
        if arguments.runtime:
            made.runtimes = tuple(each for each in made.runtimes if each in arguments.runtime)
        _say(f"runtimes here: {', '.join(made.runtimes) or 'none'}")
        measured = [_measure(row, made) for row in rows]
    print(table(measured))
    if arguments.json:
        described = document(measured, quick=arguments.quick, event_loop=arguments.event_loop)
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(described), indent=1))
    return 1 if any(each.trouble for each in measured) else 0


def _measure(row: Row, made: Host) -> Measured:
    """One row; what goes wrong in it does not cost the others."""
    began = time.monotonic()
    cases = []
    trouble = None
    try:
        for case in row.run(made):
            cases.append(case)
            _say(f"· {case.what}: p50 {case.ours.p50:.3g} {case.unit}")
    except NotHere as reason:
        trouble = f"not measured: {reason}"
    except Exception as error:
        trouble = f"broke: {error!r}"
    _say(f"{row.name} took {time.monotonic() - began:.0f} s{f', {trouble}' if trouble else ''}")
    return Measured(row.name, row.title, cases, trouble)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
