"""The targets of scripts/fuzz on their seeds, on what was found before, and on some thousand mutations."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from scripts.fuzzing.one import mutated
from scripts.fuzzing.targets import TARGETS

FINDINGS = Path(__file__).parent / "findings"
"""``TARGET-…``: inputs that once led to something else than a refusal."""
SLOW = {"ramsnap": 40, "policy": 150}


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_taken_or_refused(name: str) -> None:
    target, chance = TARGETS[name], random.Random(name)
    assert target.seeds
    for seed in target.seeds:
        target(seed)
    for _ in range(SLOW.get(name, 400)):
        target(mutated(chance.choice(target.seeds), chance))


@pytest.mark.parametrize("name", ["manifest", "references", "tar", "ramsnap-header", "ramsnap", "qcow2", "policy"])
def test_seeds_reach_the_inside(name: str) -> None:
    """Else nothing but the refusal of garbage would be fuzzed."""
    taken = 0
    for seed in TARGETS[name].seeds:
        try:
            TARGETS[name].read(seed)
            taken += 1
        except Exception as error:
            print(name, repr(error))
    assert taken


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*-*")) or [None], ids=lambda path: path.name if path else "none")
def test_what_was_found_stays_mended(path: Path | None) -> None:
    if path is None:
        pytest.skip("nothing has been found")
    name = next(each for each in sorted(TARGETS, key=len, reverse=True) if path.name.startswith(f"{each}-"))
    TARGETS[name](path.read_bytes())
