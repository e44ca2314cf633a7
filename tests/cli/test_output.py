from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ovms_supervisor.cli import output

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(0), "just now"),
        (timedelta(seconds=1), "1 second ago"),
        (timedelta(seconds=59), "59 seconds ago"),
        (timedelta(minutes=3, seconds=59), "3 minutes ago"),
        (timedelta(hours=1), "1 hour ago"),
        (timedelta(days=6), "6 days ago"),
        (timedelta(days=20), "2 weeks ago"),
        (timedelta(days=800), "2 years ago"),
    ],
)
def test_times_for_people(age: timedelta, text: str) -> None:
    assert output.ago((NOW - age).isoformat(), NOW) == text


def test_times_that_are_none_are_not_invented() -> None:
    assert output.ago(None, NOW) == ""
    assert output.ago("yesterday", NOW) == "yesterday"
    future = (NOW + timedelta(hours=1)).isoformat()
    assert output.ago(future, NOW) == future


def test_columns_are_aligned_and_cells_stay_in_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("ID", "NAME"), [("a", "one"), ("long-id", "\x1b[2Jtwo\nlines")])
    assert capsys.readouterr().out == "ID        NAME\na         one\nlong-id   ^[[2Jtwo^Jlines\n"


def test_a_table_without_rows_has_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("ID", "NAME"), [])
    assert capsys.readouterr().out == "ID   NAME\n"
