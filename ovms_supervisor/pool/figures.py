"""Figures of the pool for Prometheus: counted as things happen, the rest looked at when asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ovms_supervisor.pool.stock import Stock

_CLAIM_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 1)
_REFILL_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30)


class PoolFigures(Collector):
    """Labels are the references of orders: as many as an operator has written."""

    def __init__(self, stocks: Mapping[str, Stock]) -> None:
        self._stocks = stocks
        self.hits = Counter("ovms_pool_hits", "Starts that claimed a parked clone.", ["artifact"], registry=None)
        self.misses = Counter(
            "ovms_pool_misses", "Starts of an artifact with a pool that no clone served.", ["artifact"], registry=None
        )
        self.claim_seconds = Histogram(
            "ovms_pool_claim_seconds",
            "From the request to the guest that goes on.",
            buckets=_CLAIM_BUCKETS,
            registry=None,
        )
        self.refill_seconds = Histogram(
            "ovms_pool_refill_seconds", "To park one clone.", buckets=_REFILL_BUCKETS, registry=None
        )
        self.died = Counter("ovms_pool_died", "Clones that ended while parked.", ["artifact"], registry=None)
        self.gave_way = Counter("ovms_pool_gave_way", "Clones ended because memory was short.", registry=None)

    def collect(self) -> Iterable[Metric]:
        """All of them, with the stocks as they are now."""
        parked = GaugeMetricFamily("ovms_pool_parked", "Clones that can be claimed.", labels=["artifact"])
        wanted = GaugeMetricFamily("ovms_pool_wanted", "Clones that there should be, by demand.", labels=["artifact"])
        for reference, stock in list(self._stocks.items()):
            parked.add_metric([reference], stock.parked)
            wanted.add_metric([reference], stock.wanted())
        yield parked
        yield wanted
        for each in (self.hits, self.misses, self.claim_seconds, self.refill_seconds, self.died, self.gave_way):
            yield from each.collect()
