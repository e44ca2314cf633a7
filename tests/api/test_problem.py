from __future__ import annotations

import inspect

import pytest

from ovms_supervisor.api.problem import problem_of, status_of
from ovms_supervisor.client.connection import error_of
from spec.errors import OvmsError, class_for_code, error_classes


@pytest.mark.parametrize("kind", list(error_classes()), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_survives_the_way_to_the_client(kind: type[OvmsError]) -> None:
    import msgspec

    assert 400 <= status_of(kind) < 600
    error = kind("what happened", remedy="what to do", path="$.x", size_bytes=5)
    document = problem_of(error, status=status_of(kind), instance="/start")
    arrived = error_of(document.status, "application/problem+json", msgspec.json.encode(document))
    assert type(arrived) is class_for_code(kind.code) is kind
    assert (arrived.detail, arrived.remedy, arrived.fields) == (error.detail, error.remedy, error.fields)


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in error_classes()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("content", [b"", b"<html>", b'{"code": 5}', b"{}"])
def test_what_is_no_problem_document_is_an_internal_error(content: bytes) -> None:
    for content_type in ("text/html", "application/problem+json"):
        assert error_of(502, content_type, content).code == "internal"


def test_a_code_of_a_newer_daemon_is_still_an_error() -> None:
    document = (
        b'{"type": "x", "title": "New", "status": 418, "detail": "d", "code": "tea.pot", "fields": {"remedy": 1}}'
    )
    error = error_of(418, "application/problem+json", document)
    assert type(error) is OvmsError
    assert error.detail == "d"
    assert inspect.isclass(type(error))
