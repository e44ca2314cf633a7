"""Images that are decoded at the same time have the processors in turn, and leave no thread behind."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from cache.ramsnap import EncodedRamsnap, decode
from cache.ramsnap.crew import Crew
from tests.cache.ramsnap.snapshots import Snapshot, same_content

LIMIT_S = 30


def test_a_late_one_does_not_wait_for_all_that_was_queued_before() -> None:
    crew = Crew(1, name="turns")
    order: list[str] = []
    begun, hold = threading.Event(), threading.Event()
    first, second = crew.join(), crew.join()
    first.submit(lambda: (begun.set(), hold.wait(LIMIT_S)))  # type: ignore[func-returns-value]
    assert begun.wait(LIMIT_S)
    jobs = [first.submit(order.append, f"first {n}") for n in range(5)]
    jobs += [second.submit(order.append, f"second {n}") for n in range(2)]
    hold.set()
    for job in jobs:
        job.result(LIMIT_S)
    assert order == ["first 0", "second 0", "first 1", "second 1", "first 2", "first 3", "first 4"]
    first.shutdown()
    second.shutdown()


def test_leaving_drops_what_has_not_begun_and_waits_for_the_rest() -> None:
    crew = Crew(1, name="leaving")
    begun, hold, done = threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        hold.wait(LIMIT_S)
        done.set()

    leaving, staying = crew.join(), crew.join()
    leaving.submit(job)
    never = leaving.submit(pytest.fail, "it was dropped")
    assert begun.wait(LIMIT_S)
    other = staying.submit(lambda: "done")
    threading.Timer(0.05, hold.set).start()
    leaving.shutdown()
    assert done.is_set()
    with pytest.raises(CancelledError):
        never.result(LIMIT_S)
    assert other.result(LIMIT_S) == "done"
    with pytest.raises(RuntimeError):
        leaving.submit(print)
    staying.shutdown()
    staying.shutdown()
    assert not [each for each in threading.enumerate() if each.name.startswith("leaving")]


def test_a_job_that_fails_fails_alone() -> None:
    crew = Crew(2, name="failing")
    member = crew.join()
    broken = member.submit(lambda: 1 / 0)
    assert member.submit(lambda: 1).result(LIMIT_S) == 1
    with pytest.raises(ZeroDivisionError):
        broken.result(LIMIT_S)
    member.shutdown()


def test_many_images_at_once(snapshot: Snapshot, encoded: EncodedRamsnap, blob: Path, tmp_path: Path) -> None:
    """By one crew, which comes and goes with them; one of them is damaged, one is stopped."""
    damaged = tmp_path / "damaged"
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    stop = threading.Event()
    stop.set()
    failures: list[BaseException] = []

    def load(number: int) -> None:
        try:
            source = damaged if number == 5 else blob
            decode(source, encoded.digest, tmp_path / "out" / str(number), stop=stop if number == 3 else None)
        except BaseException as error:
            failures.append(error)

    (tmp_path / "out").mkdir()
    for _ in range(3):
        threads = [threading.Thread(target=load, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert sorted(type(error).__name__ for error in failures) == ["CancelledError", "DigestMismatch"]
        left = sorted((tmp_path / "out").iterdir())
        assert [path.name for path in left] == ["0", "1", "2", "4", "6", "7"]
        for path in left:
            assert same_content(path, snapshot.ram.parent)
            (path / "ram").unlink()
            for file in (path / "state").iterdir():
                file.unlink()
            (path / "state").rmdir()
            path.rmdir()
        failures.clear()
    assert not [each for each in threading.enumerate() if each.name.startswith("ramsnap")]


def test_a_load_that_is_stopped_in_the_middle_leaves_nothing(
    encoded: EncodedRamsnap, blob: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    begun = threading.Event()

    def place(*_: object) -> None:
        begun.set()  # some frame is being decoded
        stop.wait(LIMIT_S)

    monkeypatch.setattr("cache.ramsnap.image_files.ImageFiles.place", place)

    def stopper() -> None:
        begun.wait(LIMIT_S)
        stop.set()

    thread = threading.Thread(target=stopper)
    thread.start()
    with pytest.raises(CancelledError):
        decode(blob, encoded.digest, tmp_path / "out", stop=stop, threads=1)
    thread.join(LIMIT_S)
    assert not (tmp_path / "out").exists()
