"""Waiting for a daemon in the background: for as long as it says that it is at work."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from ovms_supervisor.cli import background
from ovms_supervisor.cli.background import START_LIMIT_S

_PATIENT = """say("EXTEND_TIMEOUT_USEC=60000000", "STATUS=1 of 2")
sys.stdin.buffer.raw.read(1)
say("READY=1")
time.sleep(60)"""
_DAEMON = """
import socket, sys, time
def say(*words):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto("\\n".join(words).encode(), "\\0" + sys.argv[1][1:])
{}
"""


def outcome(what: str, monkeypatch: pytest.MonkeyPatch, limit_s: float) -> str:
    monkeypatch.setattr(background, "START_LIMIT_S", limit_s)
    with background._notifications() as (notified, address):
        child = subprocess.Popen([sys.executable, "-c", _DAEMON.format(what), address])
        try:
            return background._wait_until_ready(child, notified)
        finally:
            child.kill()
            child.wait(10)


def test_a_daemon_that_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome("say('READY=1', 'STATUS=fine'); time.sleep(60)", monkeypatch, 30) == "ready"


def test_a_daemon_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome("sys.exit(3)", monkeypatch, 30) == "ended"


def test_a_daemon_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome("time.sleep(60)", monkeypatch, 0.2) == "late"


def test_a_daemon_that_asks_for_more_time_is_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gate_read, gate_write = os.pipe()
    try:
        ours: list[bytes] = []
        passed_s: list[float] = []
        extension, now = background._extension_s, time.monotonic

        def heard(words: list[bytes]) -> float:
            ours.extend(words)
            if not passed_s:
                passed_s.append(START_LIMIT_S + 1)  # only now, when the wait would be over, does it get ready
                os.write(gate_write, b"x")
            return extension(words)

        monkeypatch.setattr(background, "_extension_s", heard)
        monkeypatch.setattr(time, "monotonic", lambda: now() + sum(passed_s))
        with background._notifications() as (notified, address):
            child = subprocess.Popen([sys.executable, "-c", _DAEMON.format(_PATIENT), address], stdin=gate_read)
            try:
                assert background._wait_until_ready(child, notified) == "ready"
            finally:
                child.kill()
                child.wait(10)
        assert b"EXTEND_TIMEOUT_USEC=60000000" in ours
    finally:
        os.close(gate_read)
        os.close(gate_write)


def test_how_much_longer() -> None:
    assert background._extension_s([b"STATUS=x", b"EXTEND_TIMEOUT_USEC=2500000"]) == 2.5
    assert background._extension_s([b"EXTEND_TIMEOUT_USEC=99999999999999"]) == background._MAX_EXTENSION_S
    assert background._extension_s([b"EXTEND_TIMEOUT_USEC=-1", b"STATUS"]) == 0
