"""What the test guest has said: nothing lost, nothing twice, one life from its first tick to its last."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from itertools import pairwise

from ovms_supervisor.client import Client
from spec.api import LogEnd, LogLine

TICK = re.compile(r"tick nonce=([0-9a-f]{16}) count=([0-9a-f]{8}) shm=([0-9a-f]{16}|-)")
PROGRESS_S = 60.0


@dataclass(frozen=True)
class Ticks:
    nonces: frozenset[str]
    last: int
    """The last count; -1 before the first."""
    troubles: tuple[str, ...]


async def ticks(client: Client, key: str) -> Ticks:
    """All of the console, looked through for what is missing or doubled."""
    troubles: list[str] = []
    seq, counts, nonces = 0, list[int](), set[str]()
    async for item in client.log_lines(key):
        if isinstance(item, LogEnd):
            continue
        if not isinstance(item, LogLine) or item.seq != seq + 1:
            troubles.append(f"console of {key}: after line {seq} comes {item}")
        seq = item.seq
        if not isinstance(item, LogLine):
            continue
        if match := TICK.fullmatch(item.line):
            nonces.add(match[1])
            counts.append(int(match[2], 16))
        elif counts:  # a clone may begin in the middle of a line
            troubles.append(f"console of {key}: line {seq} is {item.line!r}")
    for before, after in pairwise(counts):
        if after != before + 1:
            troubles.append(f"console of {key}: count {before:#x} is followed by {after:#x}")
    if len(nonces) > 1:
        troubles.append(f"console of {key}: more than one life: {sorted(nonces)}")
    return Ticks(frozenset(nonces), counts[-1] if counts else -1, tuple(troubles[:4]))


async def goes_on(client: Client, key: str, after: int) -> bool:
    """Whether the guest counts on beyond that."""
    try:
        async with asyncio.timeout(PROGRESS_S):
            async for item in client.log_lines(key, follow=True, tail=2):
                if isinstance(item, LogEnd):
                    return False
                if isinstance(item, LogLine) and (match := TICK.fullmatch(item.line)) and int(match[2], 16) > after:
                    return True
    except TimeoutError:
        pass
    return False


async def says(client: Client, key: str, shm: str) -> bool:
    """Whether the guest comes to see that in its shared memory."""
    try:
        async with asyncio.timeout(PROGRESS_S):
            async for item in client.log_lines(key, follow=True, tail=1):
                if isinstance(item, LogLine) and (match := TICK.fullmatch(item.line)) and match[3] == shm:
                    return True
    except TimeoutError:
        pass
    return False
