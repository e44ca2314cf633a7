"""The life of an instance, walked along every arrow of the table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.instance import InstanceState, is_final, is_live, may_become

S = InstanceState
ARROWS = {
    (S.STARTING, S.RUNNING),
    (S.STARTING, S.STOPPING),
    (S.STARTING, S.FAILED),
    (S.STARTING, S.PARKED),
    (S.PARKED, S.RUNNING),
    (S.PARKED, S.STOPPING),
    (S.PARKED, S.STOPPED),
    (S.PARKED, S.FAILED),
    (S.RUNNING, S.PAUSED),
    (S.RUNNING, S.STOPPING),
    (S.RUNNING, S.STOPPED),
    (S.RUNNING, S.FAILED),
    (S.PAUSED, S.RUNNING),
    (S.PAUSED, S.STOPPING),
    (S.PAUSED, S.STOPPED),
    (S.PAUSED, S.FAILED),
    (S.STOPPING, S.STOPPED),
    (S.STOPPING, S.FAILED),
}


@pytest.mark.parametrize("old", S)
@pytest.mark.parametrize("new", S)
def test_the_table(old: InstanceState, new: InstanceState) -> None:
    assert may_become(old, new) == ((old, new) in ARROWS)


def test_final_and_live_are_opposites() -> None:
    assert {state for state in S if is_final(state)} == {S.STOPPED, S.FAILED}
    assert all(is_live(state) != is_final(state) for state in S)


@pytest.mark.parametrize("state", [state for state in S if is_live(state)])
def test_every_live_state_can_fail_and_can_be_stopped(state: InstanceState) -> None:
    assert may_become(state, S.FAILED)
    assert state is S.STOPPING or may_become(state, S.STOPPING)


@given(st.lists(st.sampled_from(S), max_size=30))
def test_no_walk_leaves_a_final_state_or_comes_back_from_stopping(wishes: list[InstanceState]) -> None:
    walk = [S.STARTING]
    for wish in wishes:
        if may_become(walk[-1], wish):
            walk.append(wish)

    assert all(not is_final(state) for state in walk[:-1])
    if S.STOPPING in walk:
        assert all(is_final(state) for state in walk[walk.index(S.STOPPING) + 1 :])
