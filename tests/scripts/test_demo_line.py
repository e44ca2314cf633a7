"""What the quickstart takes for the demo's own lines."""

from __future__ import annotations

import pytest

from scripts.demo.line import DemoLine, parse


def test_a_line_with_an_identity() -> None:
    line = parse("demo nonce=0aabda20e1128444 counter=12 id=101 disk=101:12 uptime=14.02")

    assert line == DemoLine("0aabda20e1128444", 12, 101, (101, 12), 14.02)
    assert line.disk_is_its_own


def test_a_machine_without_shared_memory_has_no_identity() -> None:
    line = parse("demo nonce=0aabda20e1128444 counter=12 id=- disk=-:12 uptime=14.02\r")

    assert line is not None
    assert line.id is None
    assert line.disk_is_its_own


@pytest.mark.parametrize("disk", ["102:12", "101:11", "-:12"])
def test_what_another_machine_wrote_is_noticed(disk: str) -> None:
    line = parse(f"demo nonce=0aabda20e1128444 counter=12 id=101 disk={disk} uptime=14.02")

    assert line is not None
    assert not line.disk_is_its_own


@pytest.mark.parametrize(
    "text", ["", "demo: power button", "demo nonce= counter=1 id=- disk=-:1 uptime=1.0", "[ 1.0] x"]
)
def test_other_lines(text: str) -> None:
    assert parse(text) is None
