"""Figures of API requests, counted in a microsecond and put into Prometheus' form when somebody asks.

Its own counters and histograms take a lock and check their arguments at every step: a fifth of what a small request
costs. These belong to the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE"})
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
_BOUNDS = (*(floatToGoString(each) for each in _BUCKETS_S), "+Inf")  # type: ignore[no-untyped-call]


class RequestFigures(Collector):
    """How many requests there were, by method, route and status, and how long they took, by route."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int], int] = {}
        self._durations: dict[str, list[int]] = {}
        """By route: how many fell into each bucket."""
        self._seconds: dict[str, float] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered; ``route`` is the pattern, not the path: labels have few values."""
        key = (method, route, status) if method in _METHODS else ("other", route, status)
        self._counts[key] = self._counts.get(key, 0) + 1
        buckets = self._durations.get(route)
        if buckets is None:
            buckets = self._durations[route] = [0] * len(_BOUNDS)
            self._seconds[route] = 0.0
        buckets[bisect_left(_BUCKETS_S, seconds)] += 1
        self._seconds[route] += seconds

    def collect(self) -> Iterator[Metric]:
        """For the registry; may be called in a thread, so it looks at copies."""
        counts = CounterMetricFamily("ovms_http_requests", "API requests.", labels=["method", "route", "status"])
        for (method, route, status), count in sorted(self._counts.copy().items()):
            counts.add_metric([method, route, str(status)], count)
        yield counts
        durations = HistogramMetricFamily(
            "ovms_http_request_duration_seconds",
            "API requests; a stream lasts as long as it is open.",
            labels=["route"],
        )
        for route, buckets in sorted(self._durations.copy().items()):
            total, cumulative = 0, []
            for bound, count in zip(_BOUNDS, buckets, strict=True):
                total += count
                cumulative.append((bound, float(total)))
            durations.add_metric([route], cumulative, self._seconds[route])
        yield durations
