"""What a registry wants to be shown: the ``WWW-Authenticate`` header (RFC 9110 §11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SEPARATOR: Final = re.compile(r"[ \t,]*")
_SCHEME: Final = re.compile(rf"({_WORD})(?:[ \t]+|(?=,)|$)")
_PARAMETER: Final = re.compile(
    rf"""({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_WORD})(?=[ \t]*(?:,|$)))[ \t]*(?:,[ \t,]*|$)"""
)
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?:,|$)")
_ESCAPED: Final = re.compile(r"\\(.)")
_MAX_LENGTH: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate."""

    scheme: str
    """In lower case: ``bearer``, ``basic``."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """By name in lower case; of a name that occurs twice, the first."""

    @property
    def scopes(self) -> frozenset[str]:
        """The words of ``scope``."""
        return frozenset(self.parameters.get("scope", "").split())


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all ``WWW-Authenticate`` headers of a reply, in their order.

    A header is read up to where it stops making sense; what was understood before that counts.
    """
    return [each for header in headers for each in _parse(header[:_MAX_LENGTH])]


def _parse(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = _end(_SEPARATOR.match(text))
    while scheme := _SCHEME.match(text, position):
        position = scheme.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(text, position):
            name, quoted, plain = parameter.groups()
            parameters.setdefault(name.lower(), plain if quoted is None else _ESCAPED.sub(r"\1", quoted))
            position = parameter.end()
        if not parameters and (blob := _TOKEN68.match(text, position)):
            position = blob.end()
        found.append(Challenge(scheme[1].lower(), parameters))
        position = _end(_SEPARATOR.match(text, position))
    return found


def _end(match: re.Match[str] | None) -> int:
    return match.end() if match else 0
