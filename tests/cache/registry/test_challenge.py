from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from cache.registry.challenge import Challenge, parse_challenges

TOKEN = st.text(string.ascii_lowercase + string.digits + "-_.", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
CHALLENGES = st.lists(st.builds(Challenge, TOKEN, st.dictionaries(TOKEN, VALUE, min_size=1, max_size=4)), max_size=4)


def written(challenge: Challenge) -> str:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return f"{challenge.scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in challenge.parameters.items())


@given(CHALLENGES, st.booleans())
def test_what_is_written_is_read(challenges: list[Challenge], one_header: bool) -> None:
    headers = [written(each) for each in challenges]

    assert parse_challenges([", ".join(headers)] if one_header else headers) == challenges


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_nonsense_is_survived(text: str) -> None:
    for each in parse_challenges([text, "Bearer " + text, 'Basic realm="' + text]):
        assert each.scheme == each.scheme.lower()


def test_a_comma_in_a_scope_separates_nothing() -> None:
    (challenge,) = parse_challenges(
        ['Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push repository:c:pull"']
    )

    assert challenge.parameters["realm"] == "https://auth.example/token"
    assert challenge.scopes == {"repository:a/b:pull,push", "repository:c:pull"}


def test_challenges_without_parameters_are_told_apart() -> None:
    read = parse_challenges(["Negotiate, NTLM abc==, BASIC Realm=x, Bearer realm=y"])

    assert [each.scheme for each in read] == ["negotiate", "ntlm", "basic", "bearer"]
    assert read[2].parameters == {"realm": "x"}


def test_what_follows_an_unclosed_quote_is_dropped() -> None:
    assert parse_challenges(['Basic realm="a", Bearer realm="b']) == [
        Challenge("basic", {"realm": "a"}),
        Challenge("bearer"),
    ]


def test_a_huge_header_takes_no_time() -> None:
    assert parse_challenges(['Bearer realm="' + '\\"' * 1_000_000]) == [Challenge("bearer")]
