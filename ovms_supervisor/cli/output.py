"""What commands print: data on stdout as an aligned table or as JSON, messages on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from ovms_supervisor.terminal import neutral, neutral_line
from spec.errors import OvmsError


def data(text: str) -> None:
    """One line (or block) of the command's result."""
    click.echo(neutral(text) if sys.stdout.isatty() else text)


def message(text: str) -> None:
    """Something for a person that is not the result."""
    click.echo(neutral(text) if sys.stderr.isatty() else text, err=True)


def error(problem: OvmsError, *, json: bool, debug: bool = False) -> None:
    """An error and what can be done about it, for a person or as one line of JSON."""
    if json:
        import msgspec

        fields = msgspec.to_builtins(problem.fields, enc_hook=str)
        body = {"code": problem.code, "title": problem.title, "detail": problem.detail, "remedy": problem.remedy}
        message(msgspec.json.encode({**body, "fields": fields}).decode())
        return
    message(f"ovm: {problem.title}: {problem.detail}")
    if problem.remedy:
        message(f"  remedy: {problem.remedy}")
    if debug:
        message(f"  code: {problem.code}")


def as_json(value: Any) -> None:
    """A result as indented JSON."""
    import msgspec  # deferred: 30 ms that tables don't need

    data(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def as_json_line(value: Any) -> None:
    """One element of a result that comes bit by bit, as a line of JSON."""
    import msgspec

    data(msgspec.json.encode(value).decode())
    sys.stdout.flush()


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, three spaces apart; the header is printed even without rows."""
    cells = [list(header), *([neutral_line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        click.echo("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line, values aligned."""
    lines = [(name, neutral_line(value)) for name, value in rows]
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        click.echo(f"{name.ljust(width)}   {value}".rstrip())


_UNITS = (
    ("year", 365 * 86400),
    ("month", 30 * 86400),
    ("week", 7 * 86400),
    ("day", 86400),
    ("hour", 3600),
    ("minute", 60),
)


def ago(timestamp: str | None, now: datetime | None = None) -> str:
    """An RFC 3339 time for people: ``3 minutes ago``; an empty string for no time, the text itself if it isn't one."""
    if not timestamp:
        return ""
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return timestamp
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    seconds = int(((now or datetime.now(UTC)) - then).total_seconds())
    if seconds < 0:
        return timestamp  # a clock is wrong: better the figure than a guess
    for unit, length in _UNITS:
        if seconds >= length:
            return _plural(seconds // length, unit)
    return _plural(seconds, "second") if seconds else "just now"


def _plural(count: int, unit: str) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'} ago"


def short_id(instance_id: str) -> str:
    """The first 8 hex digits, which every command takes as long as no other id begins so."""
    return instance_id[:8]


def short_digest(digest: str) -> str:
    """``sha256:`` and 12 hex digits, which every command takes."""
    return digest[: len("sha256:") + 12]
