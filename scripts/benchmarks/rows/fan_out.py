"""Console lines to many WebSocket tails: from the write into the console file to the frame in the reader's hands."""

from __future__ import annotations

import base64
import os
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmarks.cpu import cpu_s
from scripts.benchmarks.host import Host
from scripts.benchmarks.http import LIMIT_S
from scripts.benchmarks.measure import Case, Sample
from scripts.benchmarks.row import NotHere, Row

TAILS = 200
LINES_PER_S = 10_000
_MARK = b'"line":"@'
_PATIENCE_S = 5.0
"""What has not come so long after the last line was written is counted as lost."""
AIM_MS = {"asyncio": 5.0, "uvloop": 1.0}


def run(host: Host) -> Iterator[Case]:
    if not host.runtimes:
        raise NotHere("no runtime runs here")
    runtime = host.runtimes[0]
    seconds = host.rounds(10, 4)
    _raise_descriptor_limit()
    for consoles in (50, 1):
        yield _case(host, runtime, consoles, seconds)


def _case(host: Host, runtime: str, consoles: int, seconds: int) -> Case:
    artifact = host.snapshot(runtime)
    instances = [host.start(artifact, runtime=runtime) for _ in range(consoles)]
    for each in instances:
        host.control.call("POST", "/pause", {"instance_id": each})  # only our lines shall come
    tails: list[_Tail] = []
    try:
        tails = [_Tail(host.daemon.socket, instances[number % consoles]) for number in range(TAILS)]
        # Each line goes to TAILS / consoles tails: together they get LINES_PER_S, unless there is one console only.
        rate = LINES_PER_S * consoles / TAILS if consoles > 1 else LINES_PER_S
        consoles_of = [host.directory_of(each) / "console.log" for each in instances]
        cpu_before, began = cpu_s(host.daemon.pid), time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmarks.console_writer", *map(str, (rate, seconds, *consoles_of))],
            stdout=subprocess.PIPE,
        ) as writer:
            late_ms, received, frames = _read(tails, writer)
            assert writer.stdout
            written = int(writer.stdout.read())
        cpu = (cpu_s(host.daemon.pid) - cpu_before) / (time.perf_counter() - began)
    finally:
        for tail in tails:
            tail.socket.close()
        host.remove(*instances)
    expected = written * (TAILS // consoles)
    lost = expected - received
    sample = Sample(late_ms)
    delivered = received / seconds
    return Case(
        what=f"{TAILS} tails of {consoles} console{'s' if consoles > 1 else ''}, {delivered:,.0f} lines/s delivered",
        stop_line="line in the tail's hands",
        ours=sample,
        notes=(
            f"p99 {sample.p99:.2f} ms"
            + (f", aim {AIM_MS[host.event_loop]:g} on {host.event_loop}" if consoles > 1 else "")
            + f"; {lost} of {expected} lines lost; {frames / seconds:,.0f} frames/s; daemon {cpu:.0%} of a core",
        ),
        figures={"lost": lost, "p99_aim_ms": AIM_MS[host.event_loop] if consoles > 1 else None, "daemon_cpu": cpu},
    )


class _Tail:
    """A WebSocket client that only reads text frames."""

    def __init__(self, path: Path, instance_id: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(str(path))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /logs/{instance_id}?follow=true&tail=0&batch=true HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += self.socket.recv(4096)
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        assert b" 101 " in head, head

    def frames(self) -> list[bytes]:
        """Read once; the payloads of all frames that are complete."""
        self._buffer += self.socket.recv(1 << 18)
        data, at, found = self._buffer, 0, []
        while len(data) - at >= 2:
            length, head = data[at + 1], 2
            if length == 126:
                length, head = int.from_bytes(data[at + 2 : at + 4]), 4
            elif length == 127:
                length, head = int.from_bytes(data[at + 2 : at + 10]), 10
            if len(data) - at < head + length:
                break
            if data[at] & 0x0F == 1:
                found.append(data[at + head : at + head + length])
            at += head + length
        self._buffer = data[at:]
        return found


def _read(tails: list[_Tail], writer: subprocess.Popen[bytes]) -> tuple[list[float], int, int]:
    """Until everything has come, or nothing does any more. Of a frame's lines the first and the last are timed."""
    late_ms: list[float] = []
    received = frames = 0
    ended_at: float | None = None
    with selectors.EpollSelector() as selector:
        for tail in tails:
            selector.register(tail.socket, selectors.EVENT_READ, tail)
        while True:
            ready = selector.select(1.0)
            if ended_at is None and writer.poll() is not None:
                ended_at = time.perf_counter()
            if ended_at is not None and (not ready or time.perf_counter() - ended_at > _PATIENCE_S):
                break
            for key, _ in ready:
                for frame in key.data.frames():
                    now = time.perf_counter_ns()
                    if _MARK not in frame:
                        continue
                    frames += 1
                    received += frame.count(_MARK)
                    for at in (frame.find(_MARK), frame.rfind(_MARK)):
                        written_at = frame[at + len(_MARK) : frame.index(b'"', at + len(_MARK))]
                        late_ms.append((now - int(written_at)) / 1e6)
    return late_ms, received, frames


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))


ROW = Row(name="fan-out", title="console lines to many readers", run=run)
