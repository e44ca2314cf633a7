from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovms_supervisor.terminal import NeutralStream, neutral, neutral_line

HOSTILE = st.text(
    st.one_of(
        st.sampled_from("\x1b[]0123456789;m\r\n\t\x07\x9b\u202e\x7f"),
        st.characters(codec="utf-8", max_codepoint=0x2FFF),
    )
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07", "^[]0;title^G"),
        ("\x1b[2J", "^[[2J"),
        ("\x1b[6n", "^[[6n"),
        ("a\r\nb\rc", "a\nb^Mc"),
        ("\x9b31m", "\\u009b31m"),
        ("\x7f", "^?"),
        ("user\u202egnp.exe", "user\\u202egnp.exe"),
        ("grün 日本", "grün 日本"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert neutral(text) == shown


def test_a_cell_of_a_table_is_one_line() -> None:
    assert neutral_line("a\nb\tc") == "a^Jb^Ic"


@given(HOSTILE)
def test_nothing_active_is_left(text: str) -> None:
    for character in neutral(text):
        assert character in "\t\n" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(character) not in (
            "LRO",
            "RLO",
            "LRE",
            "RLE",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )


@given(st.one_of(st.binary(), HOSTILE.map(str.encode)), st.data())
def test_the_result_does_not_depend_on_the_cuts(content: bytes, data: st.DataObject) -> None:
    whole = NeutralStream()
    expected = whole.feed(content) + whole.finish()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    stream, shown, begin = NeutralStream(), "", 0
    for end in [*cuts, len(content)]:
        shown += stream.feed(content[begin:end])
        begin = end
    assert shown + stream.finish() == expected


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P"])))
def test_ordinary_text_comes_at_once(text: str) -> None:
    assert NeutralStream().feed(text.encode()) == text


def test_bytes_that_are_not_utf8_are_shown() -> None:
    stream = NeutralStream()
    assert stream.feed(b"a\xffb") + stream.finish() == "a\\xffb"
