"""Reading around holes gives the same bytes as reading through them."""

from __future__ import annotations

import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from cache.sparse_reader import SparseReader

PIECES = st.lists(st.tuples(st.integers(0, 300_000), st.integers(1, 20_000)), max_size=6)


@settings(max_examples=60, deadline=None)
@given(pieces=PIECES, tail=st.integers(0, 100_000), start=st.integers(0, 50_000), step=st.integers(1, 200_000))
def test_same_bytes(pieces: list[tuple[int, int]], tail: int, start: int, step: int) -> None:
    with tempfile.TemporaryFile() as file:
        for offset, length in pieces:
            file.seek(offset)
            file.write(b"x" * length)
        file.flush()
        file.truncate(file.seek(0, 2) + tail)
        file.seek(start)
        expected = file.read()
        reader = SparseReader(file.fileno(), start)
        found = bytearray()
        while chunk := reader.read(step):
            found += chunk
        assert found == expected


def test_a_file_that_grows_and_shrinks_meanwhile() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(1000)
        reader = SparseReader(file.fileno())
        assert reader.read(400) == bytes(400)
        file.truncate(500)
        assert reader.read(400) == bytes(100)
        assert reader.read(400) == b""
        file.seek(500)
        file.write(b"more")
        file.flush()
        assert reader.read(400) == b"more"
        file.truncate(100)
        assert reader.read(400) == b""
