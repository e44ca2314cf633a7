"""How many clones are wanted, by how starts have come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ovms_supervisor.pool.demand import SLOT_S, WINDOW_S, Demand


def test_a_fixed_number_is_what_it_is() -> None:
    demand = Demand(1000.0)
    for second in range(100):
        demand.note(1000.0 + second)
    assert demand.wanted(5, 5, 5, 1100.0) == 5


def test_it_grows_with_a_burst_and_ebbs_away() -> None:
    demand = Demand(1000.0)
    assert demand.wanted(2, 4, 50, 1000.0) == 4, "the usual, as long as nothing is known"
    for _ in range(20):
        demand.note(1005.0)
    assert demand.wanted(2, 4, 50, 1005.0) == 20
    assert demand.wanted(2, 4, 10, 1005.0) == 10, "at most so many"
    for _ in range(7):
        demand.note(1035.0)
    later_s = demand.changes_in_s(1035.0)
    assert later_s == 1000.0 + WINDOW_S - 1035.0, "then the order is no longer new"
    assert demand.wanted(2, 4, 50, 1000.0 + SLOT_S + WINDOW_S - 0.1) == 20
    assert demand.wanted(2, 4, 50, 1000.0 + SLOT_S + WINDOW_S) == 7
    assert demand.wanted(2, 4, 50, 2000.0) == 2
    assert demand.changes_in_s(2000.0) is None


@given(
    st.lists(st.floats(0, 300), max_size=60).map(sorted),
    st.integers(0, 5),
    st.integers(0, 20),
    st.floats(0, 200),
)
def test_it_changes_only_when_it_says_so(moments_s: list[float], least: int, more: int, after_s: float) -> None:
    demand = Demand(0.0)
    for moment_s in moments_s:
        demand.note(moment_s)
    now_s = (moments_s[-1] if moments_s else 0.0) + after_s
    wanted = demand.wanted(least, least, least + more, now_s)
    assert least <= wanted <= least + more
    in_s = demand.changes_in_s(now_s)
    if in_s is None:
        assert demand.wanted(least, least, least + more, now_s + 10_000) == wanted == least
    elif in_s > 0.01:
        assert demand.wanted(least, least, least + more, now_s + in_s - 0.01) == wanted
