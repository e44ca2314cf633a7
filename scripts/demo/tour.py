"""Boot, snapshot and clone the demo on one runtime, and measure what happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from ovms_supervisor.client import Client
from scripts.demo.line import DemoLine, parse
from spec.api import LogEnd, LogLine, MmioWrite, Overrides, SnapshotReply
from spec.errors import OvmsError
from spec.instance import InstanceInfo
from vmm.driver import RuntimeName
from vmm.smaps import parse_smaps

LINE_LIMIT_S = 90.0
"""What a guest may take to its next line; an emulated one on a busy machine needs patience."""
FIRST_ID = 101


class TourError(Exception):
    """A guest did not do what it must; the message says what was seen."""


@dataclass(slots=True)
class Figures:
    """What a tour measured. Times in milliseconds, by the daemon's clock unless said otherwise."""

    original: InstanceInfo
    boot_running_ms: float
    boot_first_line_ms: float
    """From the call of start to the first line of the service, by this process's clock."""
    snapshot: SnapshotReply
    snapshot_ms: float
    clones: list[InstanceInfo] = field(default_factory=list)
    """As their status was at the end, memory included."""
    changed_bytes: list[int] = field(default_factory=list)
    """Guest memory that each clone has changed since the snapshot: the kernel's copies, by /proc/PID/smaps."""


async def tour(
    client: Client, reference: str, runtime: RuntimeName, clones: int, say: Callable[[str], None]
) -> Figures:
    """Boot ``reference``, snapshot it, start clones one after another, and hold every one to its promise.

    Raises TourError, OvmsError.
    """
    say(f"{runtime}: boot {reference}")
    began = time.monotonic()
    original = await _start(client, reference, runtime, "original")
    first = await _line(client, original, lambda _: True)
    first_line_ms = (time.monotonic() - began) * 1000
    say(f"{runtime}: the guest says: nonce={first.nonce} counter={first.counter}")
    await _line(client, original, lambda line: line.counter >= first.counter + 2)

    tag = f"{reference.partition(':')[0]}:fastboot"
    say(f"{runtime}: snapshot as {tag}")
    before = await _last_line(client, original)
    began = time.monotonic()
    snapshot = await client.snapshot(original.instance_id, tag)
    snapshot_ms = (time.monotonic() - began) * 1000
    running = original.metrics.start
    figures = Figures(original, running.total_ms if running else 0.0, first_line_ms, snapshot, snapshot_ms)
    after = await _line(client, original, lambda line: line.counter > before.counter)
    _expect(after.nonce == first.nonce, original, "another nonce after the snapshot", after)

    say(f"{runtime}: start {clones} clones of {tag}")
    started = [await _start(client, tag, runtime, f"clone-{number}") for number in range(1, clones + 1)]
    async with asyncio.TaskGroup() as group:
        for number, clone in enumerate(started):
            group.create_task(_check_clone(client, clone, FIRST_ID + number, first.nonce, before.counter))
    figures.clones = [await client.status(clone.instance_id) for clone in started]
    figures.changed_bytes = [_changed_bytes(clone.pid) for clone in figures.clones if clone.pid]
    say(f"{runtime}: all {clones} go on from the snapshot's moment, each on a disk of its own")
    for machine in (*started, original):
        await client.remove(machine.instance_id, force=True)
    return figures


async def _start(client: Client, reference: str, runtime: RuntimeName, name: str) -> InstanceInfo:
    overrides = Overrides(runtime=runtime, name=name)
    reply = await client.start(reference, overrides, wait="running", timeout_s=LINE_LIMIT_S)
    if reply.info is None:
        raise TourError(f"{name} is still {reply.status} after {LINE_LIMIT_S:.0f} s")
    return reply.info


async def _check_clone(client: Client, clone: InstanceInfo, identity: int, nonce: str, counter: int) -> None:
    """The clone knows the nonce, counts on from the snapshot, and finds on its disk what only it was told to write."""
    write = MmioWrite(device=clone.devices[0].name, data=identity.to_bytes(4, "little"))
    line = await _line(client, clone, lambda _: True)
    _expect(line.nonce == nonce, clone, f"another nonce than {nonce}", line)
    _expect(counter < line.counter <= counter + 5, clone, f"no counting on from {counter}", line)
    await client.inject(clone.instance_id, [write])
    line = await _line(client, clone, lambda line: line.id == identity)
    later = await _line(client, clone, lambda each: each.counter > line.counter)
    _expect(line.disk_is_its_own and later.disk_is_its_own, clone, "something else on the disk than it wrote", later)


def _changed_bytes(pid: int) -> int:
    """The anonymous pages of a clone's private mapping of the RAM image."""
    mappings = parse_smaps(Path(f"/proc/{pid}/smaps").read_bytes())
    return sum(each.counters["Anonymous"] for each in mappings if each.path.endswith("/ram") and each.private)


async def _line(client: Client, machine: InstanceInfo, fits: Callable[[DemoLine], bool]) -> DemoLine:
    """The first line of the machine's console, from its beginning, that fits."""
    try:
        async with asyncio.timeout(LINE_LIMIT_S), aclosing(client.log_lines(machine.instance_id, follow=True)) as lines:
            async for item in lines:
                if isinstance(item, LogEnd):
                    raise TourError(f"{machine.name} has ended: {await _ending(client, machine)}")
                line = parse(item.line) if isinstance(item, LogLine) else None
                if line is not None and fits(line):
                    return line
    except TimeoutError:
        pass
    raise TourError(f"{machine.name} does not say what it should within {LINE_LIMIT_S:.0f} s")


async def _last_line(client: Client, machine: InstanceInfo) -> DemoLine:
    async with aclosing(client.log_lines(machine.instance_id, tail=1)) as lines:
        async for item in lines:
            line = parse(item.line) if isinstance(item, LogLine) else None
            if line is not None:
                return line
    raise TourError(f"the last line of {machine.name} is not of the demo's service")


async def _ending(client: Client, machine: InstanceInfo) -> str:
    try:
        ended = (await client.status(machine.instance_id)).exit
    except OvmsError as error:
        return error.detail
    return f"{ended.reason}; last lines: {' | '.join(ended.last_console[-3:])}" if ended else "no reason known"


def _expect(holds: bool, machine: InstanceInfo, problem: str, line: DemoLine) -> None:
    if not holds:
        raise TourError(f"{machine.name}: {problem}: {line}")
