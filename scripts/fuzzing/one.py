"""Fuzz one target for a while, or until something is found: ``python -m scripts.fuzzing.one TARGET BUILD SECONDS``."""

from __future__ import annotations

import random
import sys
import time
from importlib.util import find_spec
from pathlib import Path

_SLOW_S = 10
_MEMORY_MIB = 2048
_MAX_BYTES = 16 << 10


def guided(name: str, corpus: Path, findings: Path, seconds: int) -> None:
    """With atheris; does not return."""
    import atheris

    with atheris.instrument_imports(include=["spec", "cache", "ovms_supervisor", "scripts", "tarfile", "tomllib"]):
        from scripts.fuzzing.targets import TARGETS

    target = TARGETS[name]
    seeds = corpus.parent / f"{name}-seeds"
    seeds.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (seeds / str(number)).write_bytes(seed)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-timeout={_SLOW_S}",
            f"-rss_limit_mb={_MEMORY_MIB}",
            f"-max_len={_MAX_BYTES}",
            f"-artifact_prefix={findings}/{name}-",
            "-print_final_stats=1",
            str(corpus),
            str(seeds),
        ],
        target,
    )
    atheris.Fuzz()


def plain(name: str, findings: Path, seconds: int) -> int:
    """Mutation of the seeds; returns how often the target was called."""
    from scripts.fuzzing.targets import TARGETS

    target = TARGETS[name]
    chance = random.Random(time.time_ns())
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline:
        data = mutated(chance.choice(target.seeds), chance)
        (findings / f"{name}-current").write_bytes(data)  # there if it does not come back
        try:
            target(data)
        except Exception:
            (findings / f"{name}-current").rename(findings / f"{name}-crash-{count}")
            raise
        count += 1
    (findings / f"{name}-current").unlink(missing_ok=True)
    return count


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """The seed with some bytes changed, cut out, doubled or made up."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 8)):
        at = chance.randint(0, len(data))
        length = chance.choice((1, 1, 2, 4, 8, chance.randint(0, 200)))
        match chance.randint(0, 4):
            case 0:
                data[at : at + length] = chance.randbytes(length)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * chance.randint(1, 4)
            case 3:
                data[at : at + length] = chance.choice((b"\0", b"\xff", b"9", b'"', b"[")) * length
            case _:
                other = chance.randint(0, len(data))
                data[at:at] = data[other : other + length]
    return bytes(data[:_MAX_BYTES])


def main(name: str, build: Path, seconds: int) -> None:
    corpus, findings = build / "corpus" / name, build / "findings"
    for each in (corpus, findings):
        each.mkdir(parents=True, exist_ok=True)
    if find_spec("atheris"):
        guided(name, corpus, findings, seconds)
    else:
        print(f"stat::number_of_executed_units: {plain(name, findings, seconds)}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
