from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ovms_supervisor.logs.splitter import MAX_LINE_BYTES, content, offsets, split

printed = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.just(b"\n"),
        st.just(b"\r\n"),
        st.integers(1, 3 * MAX_LINE_BYTES + 2).map(lambda n: b"x" * n),
    ),
    max_size=12,
).map(b"".join)


@given(printed, st.integers(0, 1 << 40))
def test_lines_cover_the_bytes_in_order_and_end_where_they_should(data: bytes, start: int) -> None:
    lengths = split(data, at_end=True)
    assert sum(lengths) == len(data)
    position = 0
    for offset, length in zip(offsets(start, lengths), lengths, strict=True):
        assert offset == start + position
        raw = data[position : position + length]
        assert 1 <= length <= MAX_LINE_BYTES
        assert b"\n" not in raw[:-1]
        last = position + length == len(data)
        assert raw.endswith(b"\n") or length == MAX_LINE_BYTES or last
        position += length


@given(printed, st.data())
def test_splitting_in_pieces_gives_the_same_lines(data: bytes, draw: st.DataObject) -> None:
    whole = split(data, at_end=True)
    found: list[int] = []
    done = seen = 0
    while seen < len(data):
        seen = draw.draw(st.integers(seen + 1, len(data)), label="seen")
        new = split(data[done:seen], at_end=seen == len(data))
        found += new
        done += sum(new)
    assert found == whole


def test_an_unfinished_line_waits_for_its_end() -> None:
    assert split(b"one\ntw", at_end=False) == [4]
    assert split(b"one\ntw", at_end=True) == [4, 2]


def test_only_the_line_end_is_taken_off() -> None:
    assert content(b"a\r\n") == (b"a", False)
    assert content(b"a\r") == (b"a\r", False)
    assert content(b" \x1b[0m\xff \n") == (b" \x1b[0m\xff ", False)
    assert content(b"x" * MAX_LINE_BYTES) == (b"x" * MAX_LINE_BYTES, True)
