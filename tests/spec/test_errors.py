"""The tree of errors: what programs match on stays stable and unique."""

from __future__ import annotations

import inspect
import re

import pytest

from spec import errors
from spec.errors import OvmsError, class_for_code, error_classes

CLASSES = [each for each in error_classes() if each.__module__ == errors.__name__]


def test_codes_and_titles_are_unique() -> None:
    for attribute in ("code", "title"):
        values = [getattr(each, attribute) for each in CLASSES]
        assert sorted(values) == sorted(set(values))


@pytest.mark.parametrize("each", CLASSES, ids=lambda each: each.__name__)
def test_every_class_says_what_it_is(each: type[OvmsError]) -> None:
    assert re.fullmatch(r"[a-z]+(?:[._][a-z]+)*", each.code)
    assert each.title
    assert not each.title.endswith(".")
    assert each.__doc__
    assert each.default_remedy == "" or each.default_remedy.endswith((".", ")"))


@pytest.mark.parametrize("each", CLASSES, ids=lambda each: each.__name__)
def test_the_drawing_shows_every_class(each: type[OvmsError]) -> None:
    drawing = inspect.getdoc(errors) or ""

    assert re.search(rf"\b{each.__name__}\b", drawing)


def test_an_error_carries_its_sentence_fields_and_remedy() -> None:
    error = errors.NameInUse("an instance named 'web' is running", name="web")

    assert str(error) == error.detail == "an instance named 'web' is running"
    assert error.fields == {"name": "web"}
    assert error.remedy == errors.NameInUse.default_remedy
    assert errors.NameInUse("…", remedy="Do this.").remedy == "Do this."


def test_a_class_is_found_by_its_code() -> None:
    for each in CLASSES:
        assert class_for_code(each.code) is each
    assert class_for_code("newer.than.us") is OvmsError
