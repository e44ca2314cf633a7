from __future__ import annotations

import io
import json
import logging

import structlog
from structlog.contextvars import bound_contextvars

from ovms_supervisor.log_setup import logging_to


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
