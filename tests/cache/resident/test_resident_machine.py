"""Random histories of leases, adoptions, evictions, failures and restarts, against a model that is a dictionary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cache.resident import ResidentImage, ResidentImages
from spec.errors import BlobNotFound, CapacityExceeded, DigestMismatch, InUse
from spec.sizes import PAGE_BYTES
from tests.cache.resident.conftest import Sample, Sampling
from tests.cache.resident.kernel import locked_kib

T = TypeVar("T")

DATA_PAGES = (3, 5, 8, 13)
"""Of each sample; another page is device state."""
SIZE_PAGES = 20
BUDGET_PAGES = 20
"""Room for the largest, or several of the others, but not for all."""
numbers = st.integers(0, len(DATA_PAGES) - 1)


@dataclass
class Model:
    """What should be true of an image that is here."""

    references: int = 0
    locked: bool = False


def pages(number: int) -> int:
    return DATA_PAGES[number] + 1


class Machine(RuleBasedStateMachine):
    samples: list[Sample]
    root: Path

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.before = locked_kib()
        self.model: dict[int, Model] = {}
        """In the order of last use: the first one is evicted first."""
        self.leases: list[tuple[int, AbstractAsyncContextManager[ResidentImage]]] = []
        self.retained: list[int] = []
        self.open()

    def open(self) -> None:
        self.images = ResidentImages(self.root, mlock="required", budget_bytes=BUDGET_PAGES * PAGE_BYTES)
        self.run(self.images.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def lease(self, number: int, *, lock: bool) -> AbstractAsyncContextManager[ResidentImage]:
        made = self.samples[number]
        return self.images.lease(made.digest, made.blob, mlock_required=lock, preload=False)

    def used(self) -> int:
        return sum(map(pages, self.model))

    def touch(self, number: int) -> None:
        self.model[number] = self.model.pop(number)

    def make_room(self, number: int) -> bool:
        """What a load evicts; whether it has room then."""
        needed = pages(number)
        held = sum(pages(other) for other, state in self.model.items() if state.references)
        if held + needed > BUDGET_PAGES:
            return False
        while self.used() + needed > BUDGET_PAGES:
            del self.model[next(other for other, state in self.model.items() if not state.references)]
        return True

    @rule(number=numbers, lock=st.booleans())
    def begin_lease(self, number: int, lock: bool) -> None:
        lease = self.lease(number, lock=lock)
        if number not in self.model:
            if not self.make_room(number):
                with pytest.raises(CapacityExceeded):
                    self.run(lease.__aenter__())
                return
            self.model[number] = Model()
        image = self.run(lease.__aenter__())
        state = self.model[number]
        state.references += 1
        state.locked |= lock
        assert image.locked_bytes == (DATA_PAGES[number] * PAGE_BYTES if state.locked else 0)
        self.leases.append((number, lease))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def end_lease(self, data: st.DataObject) -> None:
        number, lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.run(lease.__aexit__(None, None, None))
        self.model[number].references -= 1
        self.touch(number)

    @rule(number=numbers, lock=st.booleans())
    def retain(self, number: int, lock: bool) -> None:
        retaining = self.images.retain(self.samples[number].digest, mlock_required=lock)
        if number not in self.model:
            with pytest.raises(BlobNotFound):
                self.run(retaining)
            return
        self.run(retaining)
        self.model[number].references += 1
        self.model[number].locked |= lock
        self.retained.append(number)

    @precondition(lambda self: self.retained)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = self.retained.pop(data.draw(st.integers(0, len(self.retained) - 1)))
        self.run(self.images.release(self.samples[number].digest))
        self.model[number].references -= 1
        self.touch(number)

    @rule(number=numbers)
    def evict(self, number: int) -> None:
        evicting = self.images.evict(self.samples[number].digest)
        if number not in self.model:
            with pytest.raises(BlobNotFound):
                self.run(evicting)
        elif self.model[number].references:
            with pytest.raises(InUse):
                self.run(evicting)
        else:
            self.run(evicting)
            del self.model[number]

    @rule(number=numbers, kept=st.booleans())
    def snapshot(self, number: int, kept: bool) -> None:
        """Staged and adopted, or given up."""
        made = self.samples[number]

        async def take() -> None:
            staging = await self.images.stage()
            content = made.snapshot.ram.read_bytes()
            with (staging / "ram").open("wb") as ram:
                ram.truncate(len(content))
                for at in range(0, len(content), PAGE_BYTES):
                    if any(page := content[at : at + PAGE_BYTES]):
                        ram.seek(at)
                        ram.write(page)
            (staging / "state" / "device").write_bytes((made.snapshot.state / "device").read_bytes())
            if kept:
                await self.images.adopt(staging, made.encoded, made.header)
            else:
                await self.images.discard(staging)

        self.run(take())
        if kept:
            self.model.setdefault(number, Model()).references += 1
            self.retained.append(number)

    @rule(number=numbers)
    def load_a_damaged_blob(self, number: int) -> None:
        if number in self.model:
            return
        made = self.samples[number]
        content = made.blob.read_bytes()
        made.blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        expected = DigestMismatch if self.make_room(number) else CapacityExceeded
        try:
            with pytest.raises(expected):
                self.run(self.lease(number, lock=False).__aenter__())
        finally:
            made.blob.write_bytes(content)

    @rule(number=numbers, callers=st.integers(1, 5), data=st.data())
    def use_all_at_once(self, number: int, callers: int, data: st.DataObject) -> None:
        """Some of them are cancelled somewhere on the way."""
        cancelled = [data.draw(st.integers(0, 40)) for _ in range(data.draw(st.integers(0, callers - 1)))]

        async def use() -> None:
            async with self.lease(number, lock=False):
                await asyncio.sleep(0)

        async def use_all() -> list[object]:
            tasks = [asyncio.create_task(use()) for _ in range(callers)]
            for task, turns in zip(tasks, cancelled, strict=False):
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
            return list(await asyncio.gather(*tasks, return_exceptions=True))

        here = number in self.model or self.make_room(number)
        results = self.run(use_all())
        allowed: tuple[type, ...] = (
            (asyncio.CancelledError, type(None))
            if here
            else (
                asyncio.CancelledError,
                CapacityExceeded,
            )
        )
        assert all(isinstance(result, allowed) for result in results)
        assert not isinstance(results[-1], asyncio.CancelledError)
        if here:
            self.model.setdefault(number, Model())
            self.touch(number)

    @rule()
    def restart(self) -> None:
        """The daemon ends and comes back; its users have to ask again."""
        for _, lease in self.leases:
            self.run(lease.__aexit__(None, None, None))
        self.leases.clear()
        self.retained.clear()
        self.run(self.images.close())
        assert locked_kib() == self.before
        self.open()
        self.model = {number: Model() for number in sorted(self.model, key=lambda each: self.samples[each].digest)}

    @invariant()
    def figures_agree(self) -> None:
        figures = self.images.figures()
        assert figures.images == len(self.model)
        assert figures.resident_bytes == self.used() * PAGE_BYTES
        locked = [number for number, state in self.model.items() if state.locked]
        assert figures.locked_bytes == sum(DATA_PAGES[number] for number in locked) * PAGE_BYTES
        assert (locked_kib() - self.before) * 1024 == len(locked) * SIZE_PAGES * PAGE_BYTES

    @invariant()
    def nothing_else_is_there(self) -> None:
        names = {self.samples[number].digest.replace(":", "-") for number in self.model}
        assert {path.name for path in self.root.iterdir()} == names | {".staging"}
        assert list((self.root / ".staging").iterdir()) == []

    def teardown(self) -> None:
        for _, lease in self.leases:
            self.run(lease.__aexit__(None, None, None))
        self.run(self.images.close())
        for number in self.model:
            self.run(self._forget(number))
        self.runner.close()
        assert locked_kib() == self.before

    async def _forget(self, number: int) -> None:
        digest = self.samples[number].digest
        while self.images._shelf.entries[digest].references:
            await self.images.release(digest)
        await self.images.evict(digest)


def test_any_history(sample: Sampling, image_dir: Path) -> None:
    class Here(Machine):
        pass

    Here.samples = [sample(number, tuple(range(count)), SIZE_PAGES) for number, count in enumerate(DATA_PAGES)]
    Here.root = image_dir
    run: Callable[..., None] = run_state_machine_as_test
    run(Here, settings=settings(stateful_step_count=30))
