"""What survives a full collection is out of the sight of the next, and dead cycles are found all the same."""

from __future__ import annotations

import gc
import weakref

from ovms_supervisor.garbage_collection import FrozenSurvivors


class Node:
    def __init__(self) -> None:
        self.other: Node | None = None


def pair() -> Node:
    """Two that hold each other: only the collector can free them."""
    one, two = Node(), Node()
    one.other, two.other = two, one
    return one


def test_survivors_are_frozen_and_all_is_as_before_afterwards() -> None:
    before = gc.get_threshold()
    with FrozenSurvivors():
        assert gc.get_threshold() != before
        kept = [pair() for _ in range(10_000)]
        gc.collect()
        assert len(gc.get_objects(generation=2)) < len(kept)
        assert gc.get_freeze_count() > len(kept)
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_young_garbage_is_collected() -> None:
    with FrozenSurvivors():
        died = weakref.ref(pair())
        gc.collect()
        assert died() is None


def test_frozen_garbage_is_collected_once_enough_has_been_frozen() -> None:
    with FrozenSurvivors() as survivors:
        dying = pair()
        died = weakref.ref(dying)
        gc.collect()
        del dying
        # As if little had been frozen at first, and this much were soon to be too much.
        survivors._frozen_after_thorough, survivors._few = 0, gc.get_freeze_count() + 1000
        gc.collect()
        assert died() is not None, "it is frozen, and nobody looks"
        kept = [Node() for _ in range(2000)]
        gc.collect()  # freezes these
        gc.collect()  # too much is frozen now: looks at everything
        assert died() is None
        assert kept
