"""The event hub: order, replay, and honesty about what was lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovms_supervisor.events import LOST, EventHub, Subscription
from spec.api import Event


async def take(subscription: Subscription, count: int) -> list[Event]:
    return [await anext(subscription) for _ in range(count)]


async def drain(subscription: Subscription) -> list[Event]:
    """What is queued, without waiting for more."""
    subscription.close()
    return [event async for event in subscription]


async def test_live_events_in_order() -> None:
    hub = EventHub()
    hub.publish("before")
    async with hub.subscribe() as events:
        waiting = asyncio.create_task(take(events, 2))
        await asyncio.sleep(0)
        hub.publish("instance.running", instance_id="i", name="n", cause="c", pid=3)
        hub.publish("instance.stopped")
        first, second = await waiting
    assert (first.seq, first.type, first.instance_id, first.name, first.cause, first.detail) == (
        2, "instance.running", "i", "n", "c", {"pid": 3},
    )  # fmt: skip
    assert second.seq == 3
    assert first.ts <= second.ts


async def test_replay_then_live() -> None:
    hub = EventHub()
    for number in range(5):
        hub.publish(f"old.{number}")
    events = hub.subscribe(since=3)
    hub.publish("new")
    assert [event.seq for event in await drain(events)] == [4, 5, 6]


async def test_a_slow_reader_is_told() -> None:
    hub = EventHub(queue=3)
    events = hub.subscribe()
    for _ in range(10):
        hub.publish("x")
    found = await drain(events)
    assert [(event.type, event.seq) for event in found] == [(LOST, 7), ("x", 8), ("x", 9), ("x", 10)]
    assert found[0].detail == {"lost": 7}


async def test_what_the_ring_no_longer_has() -> None:
    hub = EventHub(keep=4)
    for _ in range(10):
        hub.publish("x")
    found = await drain(hub.subscribe(since=2))
    assert [event.seq for event in found] == [6, 7, 8, 9, 10]
    assert (found[0].type, found[0].detail) == (LOST, {"lost": 4})


async def test_a_cursor_of_an_earlier_daemon() -> None:
    hub = EventHub()
    hub.publish("x")
    found = await drain(hub.subscribe(since=500))
    assert [event.type for event in found] == [LOST, "x"]
    assert found[0].cause == "the daemon was restarted"


async def test_closing_the_hub_ends_readers() -> None:
    hub = EventHub()
    events = hub.subscribe()
    waiting = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    hub.close()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert not hub._subscriptions


@given(
    keep=st.integers(1, 8),
    queue=st.integers(1, 8),
    before=st.integers(0, 20),
    after=st.integers(0, 20),
    since=st.integers(0, 20) | st.none(),
)
def test_nothing_is_lost_without_a_word(keep: int, queue: int, before: int, after: int, since: int | None) -> None:
    async def run() -> None:
        hub = EventHub(keep=keep, queue=queue)
        for _ in range(before):
            hub.publish("x")
        events = hub.subscribe(since)
        for _ in range(after):
            hub.publish("x")
        if since is not None and since > before:
            return
        seq = before if since is None else since
        for event in await drain(events):
            if event.type == LOST:
                seq += event.detail["lost"]
            else:
                assert event.seq == seq + 1
                seq = event.seq
        assert seq == before + after

    asyncio.run(run())
