"""What a row of the benchmark is. To add one: a module in ``rows`` with a ``ROW``, and its name in ``rows.ALL``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scripts.benchmarks.host import Host
from scripts.benchmarks.measure import Case


class NotHere(Exception):
    """This row, or a case of it, cannot be measured on this host; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A question to the fast path; ``run`` answers with one case per runtime, size or number of connections."""

    name: str
    title: str
    run: Callable[[Host], Iterable[Case]]
    """Blocks. ``host.quick`` asks for fewer samples. Raises NotHere."""
