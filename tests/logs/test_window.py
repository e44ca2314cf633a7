from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovms_supervisor.logs.window import format_time, parse_tail, parse_time
from spec.errors import InvalidRequest

NOW_NS = 1_700_000_000 * 10**9


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("0", 0),
        ("1700000000", NOW_NS),
        ("1700000000.5", NOW_NS + 500_000_000),
        ("1700000000.000000001", NOW_NS + 1),
        ("10m", NOW_NS - 600 * 10**9),
        ("1h30m", NOW_NS - 5400 * 10**9),
        ("1.5s", NOW_NS - 1_500_000_000),
        ("250ms", NOW_NS - 250_000_000),
        ("2d", NOW_NS - 172_800 * 10**9),
        ("2023-11-14T22:13:20Z", NOW_NS),
        ("2023-11-14t22:13:20.000000007z", NOW_NS + 7),
        ("2023-11-14T23:13:20+01:00", NOW_NS),
        ("2023-11-14T22:13", NOW_NS - 20 * 10**9),
        ("2023-11-14", 1_699_920_000 * 10**9),
    ],
)
def test_times_as_docker_takes_them(text: str, expected_ns: int) -> None:
    assert parse_time(text, name="since", now_ns=NOW_NS) == expected_ns


@pytest.mark.parametrize(
    "text", ["", "yesterday", "10", "-10m", "10m ", "1h30", "2023-13-01", "2023-11-14T25:00:00Z", "99999999999999m"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    if text == "10":
        assert parse_time(text, name="since") == 10 * 10**9
        return
    with pytest.raises(InvalidRequest) as caught:
        parse_time(text, name="since")
    assert caught.value.fields["path"] == "since"


@given(st.text(max_size=40))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    with suppress(InvalidRequest):
        parse_time(text, name="until")
    with suppress(InvalidRequest):
        parse_tail(text)


@given(st.integers(0, 4 * 10**18))
def test_a_formatted_time_parses_to_itself(ts_ns: int) -> None:
    text = format_time(ts_ns)
    assert parse_time(text, name="since") == ts_ns
    assert datetime.fromisoformat(text[:26] + "Z") == datetime.fromtimestamp(ts_ns // 10**9, UTC).replace(
        microsecond=ts_ns % 10**9 // 1000
    )


@pytest.mark.parametrize(("text", "expected"), [("all", None), ("0", 0), ("25", 25)])
def test_tail(text: str, expected: int | None) -> None:
    assert parse_tail(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1.5", "ten", "٣", "9" * 30])
def test_what_is_no_number_of_lines_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_tail(text)
