from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import structlog
from structlog.contextvars import bound_contextvars

from ovms_supervisor.log_file import open_log
from ovms_supervisor.log_setup import logging_to

ROOT = Path(__file__).parents[2]


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_structlog_and_standard_logging_become_json_lines_with_the_context() -> None:
    stream = io.StringIO()
    with logging_to("auto", "info", stream), bound_contextvars(request_id="r1"):
        structlog.get_logger("a").info("hällo", path="/x")
        logging.getLogger("b").warning("from %s", "elsewhere")
        structlog.get_logger("a").debug("not this")
    first, second = lines(stream)
    assert (first["event"], first["path"], first["request_id"], first["logger"]) == ("hällo", "/x", "r1", "a")
    assert (second["event"], second["level"]) == ("from elsewhere", "warning")


def test_a_traceback_has_no_values_of_variables() -> None:
    stream = io.StringIO()
    with logging_to("json", "info", stream):
        secret = "hunter" + "2"
        try:
            raise ValueError(len(secret))
        except ValueError:
            structlog.get_logger().exception("failed")
    [line] = lines(stream)
    assert "ValueError" in str(line["exception"])
    assert "hunter2" not in stream.getvalue()


def test_console_lines_are_for_people() -> None:
    stream = io.StringIO()
    with logging_to("console", "info", stream):
        structlog.get_logger().info("ready", socket="/run/x")
    assert "ready" in stream.getvalue()
    assert "socket=/run/x" in stream.getvalue()


def test_what_a_terminal_would_obey_is_shown_in_console_lines() -> None:
    stream = io.StringIO()
    with logging_to("console", "info", stream):
        structlog.get_logger().info("request", path="/\x1b]0;title\x07", pid=7)
        logging.getLogger("aiohttp").warning("from \x9b2Jelsewhere")
        try:
            raise ValueError("\x1b[2J")
        except ValueError:
            structlog.get_logger().exception("failed")
    assert not {"\x1b", "\x07", "\x9b"} & set(stream.getvalue())
    assert "path=/^[]0;title^G" in stream.getvalue()
    assert "pid=7" in stream.getvalue()
    assert "ValueError: ^[[2J" in stream.getvalue()


FLOOD = """
import os, sys
from pathlib import Path
import structlog
from ovms_supervisor.log_file import LogFile
from ovms_supervisor.log_setup import logging_to
with logging_to("json", "info", file=LogFile(Path(sys.argv[1]), limit_bytes=20_000)):
    for number in range(1000):
        structlog.get_logger("flood").info("line", number=number)
os.write(1, b"at the very end\\n")
"""


def test_the_log_of_a_daemon_in_the_background_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    log.write_text("of an earlier daemon\n" * 2000)
    descriptor = open_log(log)
    try:
        subprocess.run(
            [sys.executable, "-c", FLOOD, str(log)],
            cwd=ROOT,
            stdout=descriptor,
            stderr=descriptor,
            check=True,
            timeout=60,
        )
    finally:
        os.close(descriptor)
    before = tmp_path / "daemon.log.1"
    assert {path.name for path in tmp_path.iterdir()} == {log.name, before.name}
    assert log.stat().st_mode & 0o777 == 0o600
    *last, end = log.read_text().splitlines()
    assert end == "at the very end", "what is written past the logging goes the same way"
    numbers = [json.loads(line)["number"] for line in [*before.read_text().splitlines(), *last]]
    assert numbers == list(range(numbers[0], 1000)), "no line is lost at a change of files"
    for path in (log, before):
        assert path.stat().st_size < 20_000 + 1000
