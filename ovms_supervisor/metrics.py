"""Figures for Prometheus, in a registry of our own. Base units; every label has a bounded set of values.

Counters and histograms are fed as things happen; what the kernel or the supervisor knows is asked at the scrape.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ovms_supervisor.logs.pump import Pump
from ovms_supervisor.loop_lag import LoopLag
from ovms_supervisor.request_figures import RequestFigures
from spec.api import Event
from spec.errors import InstanceNotFound
from spec.instance import InstanceState

if TYPE_CHECKING:
    from cache.resident import ResidentImages
    from ovms_supervisor.instance.record import Record
    from ovms_supervisor.memory_samples import MemorySamples
    from ovms_supervisor.supervisor import Supervisor

_START_RESULTS = {
    "instance.running": "running",
    "instance.failed": "failed",
    "instance.stopping": "stopped",
    "instance.stopped": "stopped",
}

_TRANSFERS = {"pull.done": "network_bytes", "pull.failed": "", "push.done": "sent_bytes", "push.failed": ""}
"""Events of their ends, with the field that has what went over the network."""

_START_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_PAUSE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The figures of one daemon."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, lag: LoopLag, images: ResidentImages) -> None:
        self._lag = lag
        self._resident = images
        self._log_totals = (0, 0)
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._instances = Gauge("ovms_instances", "Instances by state.", ["state"], registry=registry)
        self._starts = Counter(
            "ovms_starts", "Starts that came to their end.", ["result", "boot", "runtime"], registry=registry
        )
        self._start_seconds = Histogram(
            "ovms_start_duration_seconds",
            "From the request to the state running.",
            ["boot", "runtime"],
            buckets=_START_BUCKETS,
            registry=registry,
        )
        self._refusals = Counter("ovms_policy_refusals", "Starts that the policy did not admit.", registry=registry)
        self._transfers = Counter(
            "ovms_transfers", "Pulls and pushes that came to their end.", ["kind", "result"], registry=registry
        )
        self._transfer_bytes = Counter(
            "ovms_transfer_bytes",
            "What completed pulls and pushes moved over the network.",
            ["kind"],
            registry=registry,
        )
        self._pause_seconds = Histogram(
            "ovms_snapshot_pause_seconds",
            "How long guests stood still for a snapshot.",
            buckets=_PAUSE_BUCKETS,
            registry=registry,
        )
        self._images = Gauge("ovms_images", "RAM images resident in tmpfs.", registry=registry)
        self._image_bytes = Gauge("ovms_images_resident_bytes", "What they take.", registry=registry)
        self._image_locked = Gauge("ovms_images_locked_bytes", "Of that, held by mlock.", registry=registry)
        self._memory = Gauge(
            "ovms_guest_memory_bytes",
            "Memory of live machines by the kernel's count: total they have, shared with an image, private to one.",
            ["kind"],
            registry=registry,
        )
        self._clone_memory = Gauge(
            "ovms_clone_memory_bytes",
            "Memory that clones have to themselves: private now, growth expected besides, budget for both.",
            ["kind"],
            registry=registry,
        )
        self.requests = RequestFigures()
        registry.register(self.requests)
        self._log_lines = Counter("ovms_log_lines", "Console lines indexed.", registry=registry)
        self._log_bytes = Counter("ovms_log_bytes", "Console bytes indexed.", registry=registry)
        self.log_lines_lost = Counter(
            "ovms_log_lines_lost", "Lines that readers were told they had lost.", registry=registry
        )
        self.event_subscribers = Gauge("ovms_event_subscribers", "Open event streams.", registry=registry)
        self._loop_lag = Gauge(
            "ovms_event_loop_lag_seconds", "Worst delay of the event loop in ten seconds.", registry=registry
        )

    async def count_starts(self, supervisor: Supervisor) -> None:
        """Follow the events and count how starts and transfers end, until cancelled.

        A resumed or re-adopted machine is no start.
        """
        starting: set[str] = set()
        async with supervisor.events.subscribe() as events:
            async for event in events:
                if event.type == "instance.starting" and event.instance_id:
                    starting.add(event.instance_id)
                elif event.instance_id in starting and event.type in _START_RESULTS:
                    starting.discard(event.instance_id)
                    with suppress(InstanceNotFound):
                        self.observe_start(supervisor.find(event.instance_id).record, _START_RESULTS[event.type])
                elif event.type == "policy.rejected":
                    self._refusals.inc()
                elif event.type in _TRANSFERS:
                    self._observe_transfer(event)

    def _observe_transfer(self, event: Event) -> None:
        kind, _, result = event.type.partition(".")
        self._transfers.labels(kind, result).inc()
        self._transfer_bytes.labels(kind).inc(event.detail.get(_TRANSFERS[event.type], 0))

    def observe_start(self, record: Record, result: str) -> None:
        """A start came to its end."""
        self._starts.labels(result, record.boot, record.runtime.name).inc()
        if result == "running" and record.start:
            self._start_seconds.labels(record.boot, record.runtime.name).observe(record.start.total_ms / 1000)

    def observe_snapshot(self, pause_s: float) -> None:
        """A snapshot was taken."""
        self._pause_seconds.observe(pause_s)

    async def render(self, supervisor: Supervisor) -> bytes:
        """The exposition text, with everything that is only known at the moment of asking."""
        instances = supervisor.instances()
        states = Tally(instance.state for instance in instances)
        for state in InstanceState:
            self._instances.labels(state).set(states[state])
        figures = self._resident.figures()
        self._images.set(figures.images)
        self._image_bytes.set(figures.resident_bytes)
        self._image_locked.set(figures.locked_bytes)
        self._loop_lag.set(self._lag.recent_s)
        self._count_logs()
        self._read_memory(supervisor.memory)
        return await asyncio.to_thread(generate_latest, self.registry)

    def _count_logs(self) -> None:
        pump = Pump.current()
        lines, size_bytes = self._log_totals
        self._log_totals = pump.lines, pump.size_bytes
        self._log_lines.inc(pump.lines - lines)
        self._log_bytes.inc(pump.size_bytes - size_bytes)

    def _read_memory(self, samples: MemorySamples) -> None:
        sums, clones = samples.sums(), samples.clones()
        self._memory.labels("total").set(sums.total_bytes)
        self._memory.labels("shared").set(sums.shared_bytes)
        self._memory.labels("private").set(sums.private_bytes)
        self._clone_memory.labels("private").set(clones.private_bytes)
        self._clone_memory.labels("growth").set(clones.growth_bytes)
        self._clone_memory.labels("budget").set(clones.budget_bytes)
