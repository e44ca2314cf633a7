"""Sizes as people write and read them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.errors import InvalidSize
from spec.sizes import GIB, KIB, MIB, format_size, is_power_of_two, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1048576", MIB),
        ("1B", 1),
        ("4k", 4 * KIB),
        ("512M", 512 * MIB),
        ("512 MiB", 512 * MIB),
        ("16G", 16 * GIB),
        ("2gb", 2 * GIB),
        ("1T", 1024 * GIB),
        (" 1G ", GIB),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "M", "-1", "+1", "1.5G", "1e9", "512X", "1 G G", "0x10", "9" * 16, "2000000T"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidSize):
        parse_size(text)


@given(st.integers(0, 1 << 40), st.sampled_from(["", "B", "K", "KiB", "m", "MB", "G", "GiB"]))
def test_a_suffix_is_a_power_of_1024(number: int, suffix: str) -> None:
    factor = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB}[suffix[:1].upper()]
    if number * factor <= 1 << 60:
        assert parse_size(f"{number}{suffix}") == number * factor


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_an_error(text: str) -> None:
    with suppress(InvalidSize):
        assert parse_size(text) >= 0


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (362 * MIB, "362 MiB"),
        (1000 * MIB, "0.98 GiB"),
        (1536 * MIB, "1.50 GiB"),
        (20 * MIB, "20.0 MiB"),
        (5000 * GIB, "5000 GiB"),
    ],
)
def test_sizes_for_people_have_three_figures(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(-4, 1 << 20))
def test_powers_of_two(number: int) -> None:
    assert is_power_of_two(number) == (number in {1 << exponent for exponent in range(21)})
