"""Taking samples fairly, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of one arm, in the unit of its case."""

    values: list[float]

    def percentile(self, share: float) -> float:
        """The smallest value that at least ``share`` of all are not above (nearest rank)."""
        ordered = sorted(self.values)
        return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]

    @property
    def p50(self) -> float:
        """The median."""
        return self.percentile(0.50)

    @property
    def p95(self) -> float:
        """One of twenty is worse."""
        return self.percentile(0.95)

    @property
    def p99(self) -> float:
        """One of a hundred is worse; the worst of all if there are fewer."""
        return self.percentile(0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table: what was measured, up to which moment, and beside what.

    ``ratio`` is of the medians. An aim is given as ``at_most`` times the baseline, or as ``at_most_value`` in the unit.
    """

    what: str
    stop_line: str
    """What the clock of ours stops at, and that of the baseline."""
    ours: Sample
    baseline: Sample | None = None
    baseline_is: str = ""
    unit: str = "ms"
    at_most: float | None = None
    at_most_value: float | None = None
    notes: tuple[str, ...] = ()
    figures: Mapping[str, object] = field(default_factory=dict)
    """Whatever else the JSON should have."""

    @property
    def ratio(self) -> float | None:
        """Ours over the baseline, by their medians."""
        return self.ours.p50 / self.baseline.p50 if self.baseline and self.baseline.p50 else None

    @property
    def met(self) -> bool | None:
        """Whether the aim was met; None if there is none."""
        if self.at_most is not None and self.ratio is not None:
            return self.ratio <= self.at_most
        if self.at_most_value is not None:
            return self.ours.p50 <= self.at_most_value
        return None


def alternate(arms: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 1) -> dict[str, Sample]:
    """Run every arm once per round, the order turned around each time: what else the host does meets all alike.

    An arm returns its own measurement, so that what it prepares and tidies up is not counted.
    """
    taken: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for number in range(warm_up + rounds):
        for name in order if number % 2 else reversed(order):
            value = arms[name]()
            if number >= warm_up:
                taken[name].append(value)
    return {name: Sample(values) for name, values in taken.items()}
