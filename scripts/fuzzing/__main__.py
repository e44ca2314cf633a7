"""Fuzz all targets, one after the other, each in a process of its own, and tell what came of it."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from scripts.fuzzing.targets import TARGETS

_EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_COVERAGE = re.compile(r"cov: (\d+)")
_GRACE_S = 120


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--build", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--only", action="append", choices=TARGETS, help="this target; may be repeated")
    parser.add_argument("--list", action="store_true", help="tell which targets there are")
    given = parser.parse_args()
    if given.list:
        print("\n".join(TARGETS))
        return 0
    failed = 0
    print(f"{'target':16} {'executions':>12} {'coverage':>9}   outcome")
    for name in given.only or TARGETS:
        executions, coverage, code = _fuzz(name, given.build, given.seconds)
        failed += code != 0
        outcome = "nothing found" if code == 0 else f"FOUND: see {given.build}/findings/{name}-* and {name}.log"
        print(f"{name:16} {executions:>12} {coverage:>9}   {outcome}", flush=True)
    return 1 if failed else 0


def _fuzz(name: str, build: Path, seconds: int) -> tuple[str, str, int]:
    log = build / f"{name}.log"
    command = [sys.executable, "-m", "scripts.fuzzing.one", name, str(build), str(seconds)]
    with log.open("wb") as file:
        code = subprocess.run(command, stdout=file, stderr=file, check=False, timeout=seconds + _GRACE_S).returncode
    said = log.read_text(errors="replace")
    executions, coverage = _EXECUTIONS.findall(said), _COVERAGE.findall(said)
    return executions[-1] if executions else "?", coverage[-1] if coverage else "-", code


if __name__ == "__main__":
    sys.exit(main())
