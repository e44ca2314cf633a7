"""What is counted of requests, in the form that Prometheus' own histogram would give it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

from ovms_supervisor.request_figures import _BUCKETS_S, RequestFigures

requests = st.tuples(
    st.sampled_from(["GET", "POST", "PATCH", "BREW"]),
    st.sampled_from(["/status/{id}", "/inject", "none"]),
    st.sampled_from([200, 404, 500]),
    st.one_of(st.sampled_from(_BUCKETS_S), st.floats(0, 100)),
)


@given(st.lists(requests, max_size=30))
def test_they_are_what_prometheus_itself_would_count(observed: list[tuple[str, str, int, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    figures = RequestFigures()
    ours.register(figures)
    counter = Counter("ovms_http_requests", "API requests.", ["method", "route", "status"], registry=theirs)
    histogram = Histogram(
        "ovms_http_request_duration_seconds",
        "API requests; a stream lasts as long as it is open.",
        ["route"],
        buckets=_BUCKETS_S,
        registry=theirs,
    )
    for method, route, status, seconds in observed:
        figures.observe(method, route, status, seconds)
        counter.labels(method if method in ("GET", "POST") else "other", route, str(status)).inc()
        histogram.labels(route).observe(seconds)
    assert _lines(ours) == _lines(theirs)


def _lines(registry: CollectorRegistry) -> list[str]:
    """In any order, and without the times at which series were made."""
    return sorted(line for line in generate_latest(registry).decode().splitlines() if "_created" not in line)
