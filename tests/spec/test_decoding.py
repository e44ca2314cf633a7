"""One way from bytes to Structs: safe for threads, and with one error for whatever is no document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from spec.decoding import NotDecodable, from_builtins, from_json

SAMPLE = Path(__file__).parent / "samples" / "rfc-example.json"

FIRST_USE = """
import sys, threading
from spec.manifest import decode_manifest
data = open(sys.argv[1], "rb").read()
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(16)
def first():
    barrier.wait()
    for _ in range(200):
        decode_manifest(data)
threads = [threading.Thread(target=first) for _ in range(16)]
[each.start() for each in threads]
[each.join() for each in threads]
print("alive")
"""


class Point(msgspec.Struct):
    x: int
    y: list[int] = []


def test_threads_that_decode_a_type_for_the_first_time_at_once_all_live() -> None:
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_USE, str(SAMPLE)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=Path(__file__).parents[2],
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]


@pytest.mark.parametrize(
    ("data", "message", "path"),
    [
        (b'{"x": "one"}', "Expected `int`, got `str`", "$.x"),
        (b'{"x": 1, "y": [1, null]}', "Expected `int`, got `null`", "$.y[1]"),
        (b"{}", "Object missing required field `x`", "$"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(data: bytes, message: str, path: str) -> None:
    with pytest.raises(NotDecodable) as caught:
        from_json(data, Point)
    assert (caught.value.message, caught.value.path, caught.value.is_json) == (message, path, True)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b'{"x": "\xff"}', b'{"x":' + b"[" * 100_000])
def test_whatever_is_no_json_is_one_error(data: bytes) -> None:
    with pytest.raises(NotDecodable) as caught:
        from_json(data, Point)
    assert str(caught.value)


def test_plain_data_becomes_a_struct_and_texts_stand_for_numbers_only_on_request() -> None:
    assert from_builtins({"x": 1}, Point) == Point(1)
    assert from_builtins({"x": "1"}, Point, strict=False) == Point(1)
    with pytest.raises(NotDecodable, match="Expected `int`"):
        from_builtins({"x": "1"}, Point)
