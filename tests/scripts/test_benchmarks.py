"""The statistics and the report of the benchmarks; the numbers themselves are no test's business."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmarks.http import Connection, exchange_all, request_bytes
from scripts.benchmarks.measure import Case, Sample, alternate
from scripts.benchmarks.report import Measured, document, table
from scripts.benchmarks.rows import ALL


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_covers_its_share(values: list[float], share: float) -> None:
    found = Sample(values).percentile(share)
    below_or_equal = sum(value <= found for value in values)
    below = sum(value < found for value in values)
    assert found in values
    assert below_or_equal >= share * len(values) - 1e-6
    assert below < share * len(values) + 1e-6


def test_arms_alternate_and_turn_around() -> None:
    order: list[str] = []

    def arm(name: str) -> float:
        order.append(name)
        return float(len(order))

    taken = alternate({"a": lambda: arm("a"), "b": lambda: arm("b")}, 2, warm_up=1)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert taken["a"].values == [3.0, 6.0]


def test_a_case_judges_by_the_medians() -> None:
    def case(ours: list[float], **aims: float) -> Case:
        return Case(what="x", stop_line="y", ours=Sample(ours), baseline=Sample([10.0]), **aims)  # type: ignore[arg-type]

    assert case([12.0, 12.0, 99.0], at_most=1.25).met is True
    assert case([13.0], at_most=1.25).met is False
    assert case([13.0], at_most_value=13.0).met is True
    assert case([13.0]).met is None


def test_the_report_has_every_case_and_every_trouble() -> None:
    case = Case(what="a start", stop_line="it runs", ours=Sample([1.0]), baseline=Sample([1.0]), at_most=1.25)
    rows = [Measured("one", "One", [case]), Measured("two", "Two", [], "not measured: no runtime")]
    text = table(rows)
    assert "a start" in text
    assert "1.00 ×" in text
    assert "met" in text
    assert "Two: not measured: no runtime" in text
    described = document(rows, quick=True, event_loop="asyncio")
    assert described["rows"][0]["cases"][0]["ours"]["values"] == [1.0]
    assert described["rows"][1]["trouble"] == "not measured: no runtime"


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ALL}) == len(ALL)


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """A server that answers every request on up to four connections, in two pieces."""
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve(connection: socket.socket) -> None:
        with connection:
            while connection.recv(4096):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
                connection.sendall(b"ngth: 2\r\n\r\nok")

    def accept() -> None:
        with listener:
            for _ in range(4):
                connection, _address = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return path


def test_requests_are_kept_under_way_on_every_connection(echo: Path) -> None:
    connections = [Connection(echo) for _ in range(4)]
    left = [3, 1, 0, 2]

    def next_request(number: int) -> bytes | None:
        if not left[number]:
            return None
        left[number] -= 1
        return request_bytes("GET", "/")

    times_ms, replies = exchange_all(connections, next_request)
    for connection in connections:
        connection.close()
    assert replies == [(200, b"ok")] * 6
    assert len(times_ms) == 6
