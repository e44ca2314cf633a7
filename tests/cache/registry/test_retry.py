from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.registry.retry import RetryPolicy, retry_after_s

NOW = datetime(2025, 9, 9, 12, 0, 0, tzinfo=UTC)


def test_waits_double_up_to_a_bound_and_end() -> None:
    waits = [RetryPolicy(tries=7).wait_s(failed, chance=lambda: 0.5) for failed in range(1, 8)]

    assert waits == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0, None]


@given(st.integers(1, 4), st.floats(0, 1))
def test_waits_spread_by_a_tenth(failed: int, chance: float) -> None:
    wait = RetryPolicy().wait_s(failed, chance=lambda: chance)

    assert wait == pytest.approx(0.25 * 2 ** (failed - 1), rel=0.1000001)


def test_what_is_asked_for_is_granted_within_a_bound() -> None:
    assert RetryPolicy().wait_s(1, 20.0) == 20.0
    assert RetryPolicy().wait_s(1, 61.0) is None
    assert RetryPolicy().wait_s(5, 1.0) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("5", 5.0),
        (" 0 ", 0.0),
        ("Tue, 09 Sep 2025 12:00:30 GMT", 30.0),
        ("Tue, 09 Sep 2025 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("", None),
        (None, None),
        ("9" * 5000, 9999999999.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, NOW) == seconds


@given(st.text(max_size=60))
def test_nonsense_is_survived(text: str) -> None:
    assert (retry_after_s(text, NOW) or 0) >= 0
